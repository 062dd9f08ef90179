"""The options that say what generated or edited images are to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from drl_dist.config.condition import ConditionConfig
    from drl_dist.sampling.labels import Wanted

LABEL_FIELDS = ("label", "labels", "compose", "guidance", "class_counts")
"""What requests without labels, as those of earlier versions, do not have."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Of models that know labels (docs/labels.md); one of the first three at most."""

    label: str | None = None
    """NAME,NAME: labels of which images take turns; NAME:COUNT,NAME:COUNT: so many images of each. Attributes of one
    image are joined by &, each maybe with not before it."""
    labels: Literal["uniform", "data"] | None = None
    """uniform: all classes take turns; data: each image has the class of a random image of --real."""
    compose: str | None = None
    """A sum of energies: names with &, + or - between them, each maybe with a weight or not before it, as in
    "Smiling & 2 * not Male - Wearing_Hat"."""
    guidance: float | None = None
    """w of (1 + w) f(y, c) - w f(y): images that show their label more clearly, and vary less; by default 0."""


def wanted_of(
    options: LabelOptions,
    condition: ConditionConfig,
    *,
    num_images: int,
    number_option: str = "--num-images",
    counts: Sequence[int] = (),
) -> Wanted:
    """What the options ask of a model with this condition; arguments and errors as of `wanted`."""
    # Not before: --help is to answer without torch.
    from drl_dist.sampling.labels import wanted

    return wanted(
        condition,
        label=options.label,
        labels=options.labels,
        compose=options.compose,
        guidance=options.guidance,
        num_images=num_images,
        number_option=number_option,
        counts=counts,
    )


def given_labels(options: LabelOptions) -> dict[str, Any]:
    """Those that were given, by name, for a request."""
    fields = {name: getattr(options, name, None) for name in LABEL_FIELDS}
    return {name: value for name, value in fields.items() if value is not None}
