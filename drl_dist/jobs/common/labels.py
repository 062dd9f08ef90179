"""The options that say what generated or edited images are to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from drl_dist.common.errors import UserError

if TYPE_CHECKING:
    from drl_dist.config.condition import ConditionConfig
    from drl_dist.data.index import ShardIndex
    from drl_dist.sampling.labels import LabelCounts, Wanted

LABEL_FIELDS = ("label", "labels", "compose", "guidance", "label_data")
"""What requests without labels, as those of earlier versions, do not have."""
MOST_IMAGES_READ = 16_384
"""Images whose attributes are read: the share of an attribute among so many has a standard error of .4 % at most."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Of models that know labels (docs/labels.md); one of the first three at most."""

    label: str | None = None
    """NAME,NAME: labels of which images take turns; NAME:COUNT,NAME:COUNT: so many images of each. Attributes of one
    image are joined by &, each maybe with not before it."""
    labels: Literal["uniform", "data"] | None = None
    """uniform: all classes take turns; data: each image has the label of a random image of --real: its class, or all
    that is known of its attributes."""
    compose: str | None = None
    """A sum of energies: names with &, + or - between them, each maybe with a weight or not before it, as in
    "Smiling & 2 * not Male - Wearing_Hat"."""
    guidance: float | None = None
    """w of (1 + w) f(y, c) - w f(y): images that show their label more clearly, and vary less; by default 0."""


@dataclass(frozen=True)
class LabelData:
    """The labels of data, of which images are to have random ones."""

    counts: LabelCounts
    record: dict[str, Any]
    """What determines them, as requests have it: attributes themselves may be many."""


def wanted_of(
    options: LabelOptions,
    condition: ConditionConfig,
    *,
    num_images: int,
    number_option: str = "--num-images",
    label_data: LabelData | None = None,
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
        data=None if label_data is None else label_data.counts,
    )


def read_label_data(options: LabelOptions, condition: ConditionConfig, real: ShardIndex | None) -> LabelData | None:
    """What ``--labels data`` draws from; None for other options.

    Args:
        condition: of the model.
        real: the data of ``--real``.

    Raises:
        UserError: these have other labels than the model, or none; or they cannot be read.
    """
    if options.labels != "data" or real is None or condition.kind == "none":
        return None
    from drl_dist.data.labels import checked_names, names_of
    from drl_dist.data.subset import labels_at, representative
    from drl_dist.sampling.labels import LabelCounts

    what = f"data {real.url} ({real.name})"
    checked_names(condition, names_of(real, condition.kind), what)
    if condition.kind == "class":
        counts, record = LabelCounts(real.class_counts), {"class_counts": list(real.class_counts)}
    else:
        count = min(real.num_samples, MOST_IMAGES_READ)
        found = labels_at(real, representative(real.num_samples, count), condition.kind)
        different, images = found[(found != 0).any(1)].unique(dim=0, return_counts=True)
        order = images.argsort(descending=True, stable=True)
        labels = tuple(map(tuple, different[order].tolist()))
        counts = LabelCounts(tuple(images[order].tolist()), labels)
        record = {"fingerprint": real.fingerprint, "images": count}
    if not sum(counts.images):
        raise UserError(what, got="images without labels", expected="labels", remedy="choose other data")
    return LabelData(counts, record)


def given_labels(options: LabelOptions, label_data: LabelData | None = None) -> dict[str, Any]:
    """Those that were given, by name, for a request."""
    fields = {name: getattr(options, name, None) for name in LABEL_FIELDS}
    fields["label_data"] = None if label_data is None else label_data.record
    return {name: value for name, value in fields.items() if value is not None}
