"""Options of ``jobs/classify.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from drl_dist.common.errors import UserError
from drl_dist.common.validation import Rule, model_rule, place_rule, refuse_broken, refuse_missing, whole_number

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Options of ``jobs/classify.py``."""

    model: str = ""
    """models:/NAME@latest, models:/NAME/VERSION, or the URL of a checkpoint or of a run folder; a model that knows
    labels (condition.kind class or attributes)."""
    data: str = ""
    """URL of the images whose labels are inferred: a shard folder with the names of the model's labels. Images may be
    without a label; accuracy and calibration are those of the others."""
    out: str = ""
    """URL of the folder for classify.json, predictions.parquet and reliability.png; the same command resumes there."""
    fit_data: str = ""
    """URL of labelled images by which the constants are fitted and the level is chosen: a shard folder with no image
    of --data in it; without it, the constants are equal."""
    other: str = ""
    """URL of images of another kind and the same size, a shard folder: also say how well the energies tell them from
    --data."""
    level: str = AUTO
    """Noise level of the energies, from 0; auto: the one that tells most images of --fit-data rightly, or, without any,
    the one whose noise is nearest as wide as the data."""
    constants: Literal["fit", "equal"] = "fit"
    """What is taken for log Z of the labels, which training leaves open. fit: one number for each, and an inverse
    temperature, fitted to --fit-data; equal: all are alike."""
    num_draws: int = 4
    """Draws of the noise of each image, whose energies are averaged."""
    given: str = ""
    """Attributes that are known, NAME,NAME: the others are inferred from them and the image."""
    num_images: int | None = None
    """Images of --data, and of --other, evenly spread over it; by default all of each."""
    batch_size: int = 64
    """Images that are computed together."""
    seed: int = 0
    """Keys the noise."""
    use_gpu: bool = False
    """Compute on a GPU."""
    tracking_uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI. Only models:/ addresses need it."""
    allow_code: tuple[str, ...] = ()
    """Import paths, MODULE:NAME, of a network, kernel or objective that is not part of drl_dist, which the model may
    import (docs/own_parts.md)."""

    @property
    def given_names(self) -> tuple[str, ...]:
        """Of `given`."""
        return tuple(name.strip() for name in self.given.split(",") if name.strip())


def level_number(level: str) -> int | None:
    """The level that the option names, None for auto.

    Raises:
        UserError: it names none.
    """
    if level == AUTO:
        return None
    try:
        number = whole_number(level)
    except ValueError:
        number = -1
    if number < 0:
        raise UserError("option --level", got=level, expected="auto, or a number from 0", remedy="correct the option")
    return number


def check_classify(options: ClassifyOptions) -> None:
    """Raise `UserError` for options that no job can have."""
    refuse_missing({"--model": options.model, "--data": options.data, "--out": options.out})
    level_number(options.level)
    rules: list[Rule] = [
        (
            "--num-images",
            options.num_images,
            "none, or at least 1",
            options.num_images is None or options.num_images >= 1,
        ),
        ("--num-draws", options.num_draws, "1 to 1000", 1 <= options.num_draws <= 1000),
        ("--batch-size", options.batch_size, "at least 1", options.batch_size >= 1),
        ("--seed", options.seed, "a number in [0, 2**63)", 0 <= options.seed < 2**63),
        ("--constants", options.constants, "fit or equal", options.constants in ("fit", "equal")),
        *(
            place_rule(name, place)
            for name, place in (
                ("--data", options.data),
                ("--fit-data", options.fit_data or None),
                ("--other", options.other or None),
                ("--out", options.out),
            )
        ),
    ]
    refuse_broken([*rules, model_rule(options.model)])
