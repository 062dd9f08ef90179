"""Options of ``jobs/evaluate.py``."""

from __future__ import annotations

from dataclasses import dataclass

from drl_dist.common.validation import Rule, file_rule, local_rule, place_rule, refuse_broken, refuse_missing
from drl_dist.evaluation.feature_spec import MIN_IMAGES, FeatureSpec, parse_classifier, parse_features


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``jobs/evaluate.py``."""

    samples: str = ""
    """URL of the generated images: a shard folder, e.g. one that jobs/sample.py wrote."""
    data: str = ""
    """URL of the real images: a shard folder (docs/data.md)."""
    features: str = "inception"
    """Feature network: inception, inception=PATH, timm:NAME, timm:NAME=PATH, torchscript:PATH or pixels
    (docs/scores.md)."""
    per_class: bool = False
    """Also the FID of each class, and their mean; both folders need the same classes."""
    classifier: str | None = None
    """torchscript:PATH, timm:NAME or timm:NAME=PATH: a classifier of the samples' classes, of which the share of
    images is told that it takes for what they were asked to be (docs/scores.md)."""
    num_images: int = 50_000
    """Images of each set, evenly spread over it; a set with fewer is refused."""
    batch_size: int = 64
    """Images that go through the feature network together."""
    use_gpu: bool = False
    """Compute features on a GPU."""
    cache_dir: str | None = None
    """Folder that features are kept in; by default ~/.cache/drl_dist/features."""
    json: str | None = None
    """File or URL that the scores are also written to, as JSON."""
    tracking_uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI. Without one, nothing is logged."""


def check_evaluate(options: EvaluateOptions) -> tuple[FeatureSpec, FeatureSpec | None]:
    """The feature network and the classifier of options that are in order.

    Raises:
        UserError: they are not.
    """
    refuse_missing({"--samples": options.samples, "--data": options.data})
    rules: list[Rule] = [
        ("--num-images", options.num_images, f"at least {MIN_IMAGES}", options.num_images >= MIN_IMAGES),
        ("--batch-size", options.batch_size, "at least 1", options.batch_size >= 1),
        *(place_rule(name, place) for name, place in (("--samples", options.samples), ("--data", options.data))),
        file_rule("--json", options.json),
        local_rule("--cache-dir", options.cache_dir),
    ]
    refuse_broken(rules)
    return parse_features(options.features), parse_classifier(options.classifier) if options.classifier else None
