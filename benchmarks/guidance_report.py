"""The table and the picture of `benchmarks.guidance`, from the scores of its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drl_dist.common.errors import UserError
from drl_dist.common.figures import figure_png, new_figure

KINDS = {"fashion_mnist": "T-shirt/top,Pullover,Dress,Coat,Shirt;Sandal,Sneaker,Ankle boot"}
"""By name of the data, classes that look alike in small; those not named are kinds of their own."""
_STRAIGHT = 0.2
_HEAD = ("w", "FID", "mean FID of classes", "precision", "recall", "accuracy", "kind", "seconds per image")


def kinds_of(text: str, names: Sequence[str]) -> list[list[int]]:
    """The numbers of the classes of each kind; classes that are not named are kinds of their own.

    Args:
        text: names of classes, separated by commas, and by semicolons between kinds.
        names: of the classes.

    Raises:
        UserError: a name is none of the classes, or is there twice.
    """
    named = [[name.strip() for name in part.split(",")] for part in text.split(";") if part.strip()]
    flat = [name for part in named for name in part]
    wrong = next((name for name in flat if name not in names or flat.count(name) > 1), None)
    if wrong is not None:
        raise UserError(
            "--kinds",
            got=f"{wrong!r}" + (" twice" if wrong in names else ""),
            expected=f"names of the classes ({', '.join(names)}), each at most once",
            remedy='write them as "a,b;c,d"',
        )
    rest = [[number] for number, name in enumerate(names) if name not in flat]
    return [[names.index(name) for name in part] for part in named] + rest


def accuracy_of(confusion: Sequence[Sequence[int]], kinds: Sequence[Sequence[int]]) -> float:
    """Share of images that are taken for one of the kind that they were asked to be of.

    Args:
        confusion: (K, K), rows are what was asked for.
        kinds: numbers of the classes of each.
    """
    table = np.array(confusion)
    return float(sum(table[np.ix_(kind, kind)].sum() for kind in kinds) / table.sum())


def table(
    points: Sequence[Mapping[str, Any]],
    unlabelled: Mapping[str, Any],
    real: Mapping[str, Any],
    kinds: Sequence[Sequence[int]],
) -> str:
    """A line for each w, as Markdown, then one of images without a label and one of real images."""

    def row(name: str, scores: Mapping[str, Any]) -> tuple[str, ...]:
        numbers = [scores.get(key) for key in ("fid", "intra_fid", "precision", "recall")]
        if "confusion" in scores:
            single = [[number] for number in range(len(scores["confusion"]))]
            numbers += [accuracy_of(scores["confusion"], groups) for groups in (single, kinds)]
        else:
            numbers += [None, None]
        seconds = f"{scores['seconds_per_image']:.3g}" if "seconds_per_image" in scores else ""
        return (name, *("" if number is None else f"{number:.3f}" for number in numbers), seconds)

    lines = [_HEAD, ("---",) * len(_HEAD)]
    lines += [row(f"{point['guidance']:g}", point) for point in points]
    lines += [row("no label", unlabelled), row("real images", {"confusion": real["confusion"]})]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shares(names: Sequence[str], found: Sequence[int], real: Sequence[int]) -> str:
    """How frequent each class is among images without a label, next to its share of the data, as Markdown."""
    lines = [("class", "of the images without a label", "of the data", "ratio"), ("---",) * 4]
    for name, ours, theirs in zip(names, found, real, strict=True):
        share, expected = ours / sum(found), theirs / sum(real)
        ratio = f"{share / expected:.2f}" if expected else ""
        lines.append((name, f"{share:.3f}", f"{expected:.3f}", ratio))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(points: Sequence[Mapping[str, Any]], real: Mapping[str, Any], caption: str) -> bytes:
    """FID against accuracy, each point labelled with its w: a PNG."""
    single = [[number] for number in range(len(real["confusion"]))]
    accuracy = accuracy_of(real["confusion"], single)
    figure = new_figure(8, 5)
    axes = figure.subplots()
    found = [(accuracy_of(point["confusion"], single), point["fid"]) for point in points]
    axes.plot(*zip(*found, strict=True), marker="o", color="C0", label="samples")
    for point, place, side in zip(points, found, _free_sides(found), strict=True):
        text, at = f"w = {point['guidance']:g}", (26 * side[0], 14 * side[1])
        # White behind it, should something else pass there.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(text, place, at, textcoords="offset points", ha="center", va="center", bbox=box)
    axes.axvline(accuracy, color="gray", linestyle=":", label="accuracy of real images")
    axes.set(xlabel="share of samples that the classifier takes for what they were asked to be", ylabel="FID")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure_png(figure, caption)


def _free_sides(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """For each point of a line a direction of length 1 away from the line to its neighbours."""
    points = np.array(places) / np.maximum(np.ptp(places, axis=0), 1e-9)
    found: list[tuple[float, float]] = []
    for at, point in enumerate(points):
        steps = [points[other] - point for other in (at - 1, at + 1) if 0 <= other < len(points)]
        steps = [step / np.linalg.norm(step) for step in steps if step.any()]
        away = -np.sum(steps, axis=0) if steps else np.array([0.0, 1.0])
        if np.linalg.norm(away) < _STRAIGHT:
            away = np.array([-steps[0][1], steps[0][0]])
        x, y = away / np.linalg.norm(away)
        found.append((float(x), float(y)))
    return found
