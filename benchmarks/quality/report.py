"""The results as a table, as curves, and as one file of numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.settings import SETTINGS
from drl_dist.common.amounts import counted
from drl_dist.common.durations import duration
from drl_dist.common.figures import figure_png, new_figure

Points = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""Setting -> seeds -> points of the budget, as `Record.add_point` keeps them."""
_HEAD = (
    "setting", "samples", "FID: median (range)", "FID to training images", "KID", "precision", "recall", "recognised",
    "share of a class", "distance ratio", "GFLOP per sample", "steps", "time",
)  # fmt: skip


def table(results: Points, reference: Mapping[str, Any], shares: Sequence[float]) -> str:
    """Two Markdown tables: all scores at the end of the budget, and FID on the way."""
    lines = [_row(_HEAD), _row(["---"] * len(_HEAD))]
    for name, runs in results.items():
        ends = [run[-1] for run in runs]
        if diverged := [end for end in ends if end["diverged"]]:
            told = ", ".join(f"seed {end['seed']} {end['diverged']}" for end in diverged)
            lines.append(_row([SETTINGS[name].label, f"diverged: {told}", *[""] * (len(_HEAD) - 2)]))
        good = [end for end in ends if not end["diverged"]]
        for way in good[0]["draws"] if good else ():
            lines.append(_scores_row(name, way, good))
    lines += _reference_rows(reference)
    lines += ["", "FID at shares of the budget; in brackets, GFLOP per training image:", ""]
    lines += [_row(["setting", *(f"{share:.2f}" for share in shares)]), _row(["---"] * (len(shares) + 1))]
    for name, runs in results.items():
        points = [[run[index] for run in runs] for index in range(len(shares))]
        lines.append(_row([SETTINGS[name].label, *(_fid_cell(found) for found in points)]))
    return "\n".join(lines) + "\n"


def draw_curves(results: Points, reference: Mapping[str, Any], place: Path) -> None:
    """FID against arithmetic and against time: medians, and the ranges over the seeds."""
    figure = new_figure(11, 4.6)
    panels = dict(zip(("flop_per_training_image", "seconds"), figure.subplots(1, 2, sharey=True), strict=True))
    for number, (name, runs) in enumerate(results.items()):
        points = [[one for one in found if one["draws"]] for found in zip(*runs, strict=True)]
        points = [found for found in points if found]
        if not points:
            # Diverged before its first samples.
            continue
        scores = [[_first(one)["fid"] for one in found] for found in points]
        for key, axes in panels.items():
            x = [statistics.median(one[key] for one in found) for found in points]
            look = {"color": f"C{number}"}
            axes.plot(x, [statistics.median(some) for some in scores], marker="o", label=SETTINGS[name].label, **look)
            axes.fill_between(x, [min(some) for some in scores], [max(some) for some in scores], alpha=0.2, **look)
    for key, axes in panels.items():
        # An axis without numbers cannot be logarithmic.
        xscale = "log" if axes.lines else "linear"
        axes.axhline(max(reference["train"]["fid"], 1e-3), color="gray", linestyle=":", label="training images")
        axes.set(xscale=xscale, yscale="log", xlabel=key.replace("_", " ").replace("flop", "FLOP"))
        axes.grid(alpha=0.3, which="both")
    panels["flop_per_training_image"].set_ylabel("FID to held-out images")
    panels["flop_per_training_image"].legend()
    seeds = counted(max((len(runs) for runs in results.values()), default=0), "seed")
    caption = f"FID on the way, medians of up to {seeds} and their range: {', '.join(results)}"
    place.write_bytes(figure_png(figure, caption))


def _scores_row(name: str, way: str, ends: Sequence[Mapping[str, Any]]) -> str:
    draws = [end["draws"][way] for end in ends]

    def middle(key: str, form: str) -> str:
        return format(statistics.median(draw[key] for draw in draws), form)

    fids = [draw["fid"] for draw in draws]
    rarest, commonest = (pick(pick(draw["class_shares"]) for draw in draws) for pick in (min, max))
    steps, seconds = (statistics.median(end[key] for end in ends) for key in ("step", "seconds"))
    return _row(
        [
            SETTINGS[name].label,
            way,
            f"{statistics.median(fids):.2f} ({min(fids):.2f} to {max(fids):.2f})",
            middle("fid_train", ".2f"),
            middle("kid", ".3f"),
            middle("precision", ".2f"),
            middle("recall", ".2f"),
            middle("recognised", ".2f"),
            f"{rarest:.3f} to {commonest:.3f}",
            middle("nearest_ratio", ".3f"),
            f"{statistics.median(draw['flop_per_image'] for draw in draws) / 1e9:.3g}",
            f"{steps:.0f}",
            duration(seconds),
        ]
    )


def _reference_rows(reference: Mapping[str, Any]) -> list[str]:
    told = {
        "one half of all images against the other": reference["halves"],
        "training images against held-out ones": reference["train"],
    }
    rows = [
        [label, "", f"{one['fid']:.2f}", "", f"{one['kid']:.3f}", f"{one['precision']:.2f}", f"{one['recall']:.2f}"]
        for label, one in told.items()
    ]
    unseen = reference["unseen"]
    shares = f"{min(unseen['class_shares']):.3f} to {max(unseen['class_shares']):.3f}"
    rows.append(["held-out images", *[""] * 6, f"{unseen['recognised']:.2f}", shares])
    return [_row([*row, *[""] * (len(_HEAD) - len(row))]) for row in rows]


def _fid_cell(found: Sequence[Mapping[str, Any]]) -> str:
    good = [one for one in found if one["draws"]]
    if not good:
        return "diverged"
    cost = statistics.median(one["flop_per_training_image"] for one in good) / 1e9
    return f"{statistics.median(_first(one)['fid'] for one in good):.2f} ({cost:.3g})"


def _first(point: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(iter(point["draws"].values()))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
