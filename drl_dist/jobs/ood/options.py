"""Options of ``jobs/ood.py``."""

from __future__ import annotations

from dataclasses import dataclass

from drl_dist.common.validation import Rule, model_rule, place_rule, refuse_broken, refuse_missing


@dataclass(frozen=True, kw_only=True)
class OodOptions:
    """Options of ``jobs/ood.py``."""

    model: str = ""
    """models:/NAME@latest, models:/NAME/VERSION, or the URL of a checkpoint, of a run folder or of a saved
    model."""
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
    allow_code: tuple[str, ...] = ()
    """Import paths, MODULE:NAME, of a network, kernel or objective that is not part of drl_dist, which the model may
    import (docs/own_parts.md)."""


def check_ood(options: OodOptions) -> None:
    """Raise `UserError` for options that no job can have."""
    refuse_missing({"--model": options.model, "--data": options.data, "--other": options.other, "--out": options.out})
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
