"""The labels of both folders, and what is scored by them: FID of each class, and what a classifier sees."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.waiting import Waiting
from drl_dist.config.condition import shown
from drl_dist.data.index import ShardIndex
from drl_dist.data.subset import labels_of
from drl_dist.evaluation.classes import FEWEST, ClassFid, Recognition, class_logits, intra_fid, recognition
from drl_dist.evaluation.classes import class_fids as fids_of_classes
from drl_dist.evaluation.features import FeatureNetwork, Features
from drl_dist.jobs.evaluate.options import EvaluateOptions


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of the images that are compared, in the order of their features."""

    names: tuple[str, ...]
    asked: Tensor
    """Of the samples, (N,) int64, -1 without one."""
    known: Tensor | None
    """Of the data, likewise; None for data without classes."""


def read_labels(options: EvaluateOptions, samples: ShardIndex, data: ShardIndex) -> Labels | None:
    """The labels that the options need; None if they need none.

    Raises:
        UserError: the folders have no classes, different ones, or too few labelled images.
    """
    if not options.per_class and options.classifier is None:
        return None
    option = "--per-class" if options.per_class else "--classifier"
    needed = (("samples", samples), ("data", data))[: 2 if options.per_class else 1]
    for what, index in needed:
        if not index.classes:
            remedy = "generate them with --labels uniform" if what == "samples" else "prepare them with labels"
            raise UserError(
                f"{what} {index.url}",
                got="images without classes",
                expected=f"classes with names, since {option} is given",
                remedy=f"{remedy} (docs/data.md), or leave {option} out",
            )
    if data.classes and data.classes != samples.classes:
        raise UserError(
            f"data {data.url}",
            got=f"{len(data.classes)} classes: {shown(data.classes)}",
            expected=f"the {len(samples.classes)} of the samples, in their order: {shown(samples.classes)}",
            remedy=f"compare with data of the same classes, or leave {option} out",
        )
    with Waiting("labels", stream=sys.stderr) as waiting:
        waiting.begin("reading those of the images", is_told=False)
        asked = labels_of(samples, options.num_images, "class")
        known = labels_of(data, options.num_images, "class") if data.classes else None
    for what, index, labels in (("samples", samples, asked), ("data", data, known)):
        if labels is not None and not bool((labels >= 0).any()):
            raise UserError(
                f"{what} {index.url}",
                got=f"no label in {counted(len(labels), 'image')}",
                expected=f"labels, since {option} is given",
                remedy="prepare the images again with their labels (docs/data.md)",
            )
    labels = Labels(samples.classes, asked, known)
    if options.per_class and known is not None and not _has_class(labels, known):
        raise UserError(
            f"samples {samples.url} and data {data.url}",
            got=f"no class with {FEWEST} images in either",
            expected=f"at least {FEWEST} images of some class",
            remedy="raise --num-images, or leave --per-class out",
        )
    return labels


def _has_class(labels: Labels, known: Tensor) -> bool:
    counts = [torch.bincount(some[some >= 0], minlength=len(labels.names)) for some in (labels.asked, known)]
    return bool((torch.minimum(*counts) >= FEWEST).any())


def class_fids(generated: Features, real: Features, labels: Labels) -> tuple[ClassFid, ...]:
    """The FID of each class."""
    assert labels.known is not None
    return fids_of_classes(generated.values, labels.asked, real.values, labels.known, labels.names)


@dataclass(frozen=True, eq=False)
class Judged:
    """What a classifier sees."""

    network: FeatureNetwork
    samples: Recognition
    data: Recognition | None
    """Of real images with the same classes."""


def judged_by(network: FeatureNetwork, seen: Features, of_data: Features | None, labels: Labels) -> Judged:
    """What a classifier sees.

    Args:
        network: see `drl_dist.evaluation.classes.load_classifier`.
        seen: what it makes of the samples.
        of_data: and of the data, if their classes are known.
        labels: of either.
    """
    data = None
    if of_data is not None and labels.known is not None:
        data = recognition(class_logits(of_data), labels.known)
    return Judged(network, recognition(class_logits(seen), labels.asked), data)


def told_by_class(fids: tuple[ClassFid, ...] | None, judged: Judged | None, labels: Labels | None) -> dict[str, Any]:
    """Print what is known of classes; the same for the report, with None for what was not asked for."""
    names = () if labels is None else labels.names
    found: dict[str, Any] = {"per_class": None, "classifier": None}
    if fids is not None:
        _print_classes(fids)
        found["per_class"] = [dataclasses.asdict(one) for one in fids]
    if judged is not None:
        _print_judged(judged, names)
        found["classifier"] = _judged_json(judged, names)
    return found


def _print_classes(fids: tuple[ClassFid, ...]) -> None:
    print(f"mean FID of the classes {intra_fid(fids):.4f}")
    for one in fids:
        if one.fid is not None:
            print(f"  {one.name}: FID {one.fid:.4f} (generated {one.num_samples}, real {one.num_data})")
    if few := [one.name for one in fids if one.fid is None]:
        print(f"  left out, with fewer than {FEWEST} images in one of the folders: {', '.join(few)}")


def _print_judged(judged: Judged, names: tuple[str, ...]) -> None:
    ours, theirs = judged.samples, judged.data
    real = "" if theirs is None else f" (real images {theirs.accuracy:.4f})"
    print(
        f"accuracy {ours.accuracy:.4f}{real} of {counted(ours.num_images, 'labelled image')} by {judged.network.name}"
    )
    parts = zip(names, ours.by_class, strict=True)
    print("  " + ", ".join(f"{name} {share:.3f}" for name, share in parts if share is not None))


def _judged_json(judged: Judged, names: tuple[str, ...]) -> dict[str, Any]:
    """Accuracies and the confusion matrix, whose rows are what was asked for."""
    ours, theirs = judged.samples, judged.data
    return {
        "name": judged.network.name,
        "network": judged.network.identity,
        "num_images": ours.num_images,
        "accuracy": ours.accuracy,
        "accuracy_of_data": None if theirs is None else theirs.accuracy,
        "classes": [
            {"name": name, "accuracy": share, "num_samples": count}
            for name, share, count in zip(names, ours.by_class, ours.confusion.sum(1).tolist(), strict=True)
        ],
        "confusion": ours.confusion.tolist(),
    }
