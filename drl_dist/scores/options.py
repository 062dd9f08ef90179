"""What ``jobs/evaluate.py`` and ``jobs/ood.py`` are asked to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drl_dist.errors import Rule, UserError, file_rule, local_rule, model_rule, place_rule, refuse_broken
from drl_dist.places import shown

MIN_IMAGES = 10
"""A covariance needs two images, the inception score a few for each of its ten parts."""
KINDS = "inception, inception=PATH, timm:NAME, timm:NAME=PATH, torchscript:PATH or pixels"


@dataclass(frozen=True)
class FeatureSpec:
    """A feature network as it is asked for."""

    text: str
    """As the user wrote it."""
    kind: Literal["inception", "timm", "torchscript", "pixels"]
    name: str
    """Model name of a timm network, otherwise empty."""
    source: str | None
    """Path or URL of the weights or the module, None for the published weights."""


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


@dataclass(frozen=True, kw_only=True)
class OodOptions:
    """Options of ``jobs/ood.py``."""

    model: str = ""
    """models:/NAME@latest, models:/NAME/VERSION, or the URL of a checkpoint or of a run folder."""
    data: str = ""
    """URL of images like those that the model was trained on, at best its test set: a shard folder."""
    other: str = ""
    """URL of other images of the same size: a shard folder."""
    out: str = ""
    """URL of the folder for ood.json and histogram.png; the same command resumes there."""
    num_images: int | None = None
    """Images of each set, evenly spread over it; by default as many as the smaller set holds."""
    batch_size: int = 64
    """Images that are computed together."""
    seed: int = 0
    """Keys the little noise of y_0."""
    use_gpu: bool = False
    """Compute on a GPU."""
    tracking_uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI. Only models:/ addresses need it."""


def parse_features(text: str) -> FeatureSpec:
    """A feature network from its option.

    Raises:
        UserError: it is none of `KINDS`.
    """
    head, has_source, source = text.partition("=")
    if head == "inception" and (source or not has_source):
        return FeatureSpec(text, "inception", "", _checked(text, source) if source else None)
    if text == "pixels":
        return FeatureSpec(text, "pixels", "", None)
    kind, _, name = head.partition(":")
    if kind == "timm" and name and (source or not has_source):
        return FeatureSpec(text, "timm", name, _checked(text, source) if source else None)
    kind, _, path = text.partition(":")
    if kind == "torchscript" and path:
        return FeatureSpec(text, "torchscript", "", _checked(text, path))
    raise UserError("feature network", got=repr(text), expected=KINDS, remedy="name one of these")


def check_evaluate(options: EvaluateOptions) -> FeatureSpec:
    """The feature network of options that are in order.

    Raises:
        UserError: they are not.
    """
    _check_given({"--samples": options.samples, "--data": options.data})
    rules: list[Rule] = [
        ("--num-images", options.num_images, f"at least {MIN_IMAGES}", options.num_images >= MIN_IMAGES),
        ("--batch-size", options.batch_size, "at least 1", options.batch_size >= 1),
        *(place_rule(name, place) for name, place in (("--samples", options.samples), ("--data", options.data))),
        file_rule("--json", options.json),
        local_rule("--cache-dir", options.cache_dir),
    ]
    refuse_broken(rules)
    return parse_features(options.features)


def check_ood(options: OodOptions) -> None:
    """Raise `UserError` for options that no job can have."""
    _check_given({"--model": options.model, "--data": options.data, "--other": options.other, "--out": options.out})
    rules: list[Rule] = [
        (
            "--num-images",
            options.num_images,
            "none, or at least 1",
            options.num_images is None or options.num_images >= 1,
        ),
        ("--batch-size", options.batch_size, "at least 1", options.batch_size >= 1),
        ("--seed", options.seed, "a number in [0, 2**63)", 0 <= options.seed < 2**63),
        *(
            place_rule(name, place)
            for name, place in (("--data", options.data), ("--other", options.other), ("--out", options.out))
        ),
    ]
    refuse_broken([*rules, model_rule(options.model)])


def default_cache_dir() -> Path:
    """This user's folder of features on this machine."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # As the standard has it: a relative path there means nothing.
    return (Path(named) if named.startswith("/") else Path.home() / ".cache") / "drl_dist" / "features"


def _checked(text: str, source: str) -> str:
    if source.startswith(("http://", "https://")):
        return source
    _, got, expected, holds = file_rule("--features", source)
    if not holds:
        raise UserError(
            f"feature network {shown(text)}",
            got=f"the path {got}",
            expected=expected,
            remedy="write the path in full: a job's working directory is a copy",
        )
    return source


def _check_given(places: dict[str, str]) -> None:
    missing = [name for name, place in places.items() if not place]
    if missing:
        flags, wanted = ", ".join(missing), ", ".join(places)
        raise UserError("command line", got=f"no {flags}", expected=wanted, remedy=f"add {flags}")
