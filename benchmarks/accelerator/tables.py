"""The tables of a report, each from the rows of one part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from drl_dist.common.amounts import mebibytes

Row = dict[str, Any]
_COMPARED = {
    "f": "f",
    "gradient": "image gradient",
    "chain": "chain",
    "losses": "50 losses",
    "samples": "samples",
    "resumed": "resumed from the CPU",
}
_NONE = "–"


def agreement(rows: Sequence[Row]) -> list[str]:
    """Relative errors of every way, and the tolerances of every precision."""
    measured = [row for row in rows if "error" in row]
    if not measured:
        return []
    lines = _head(["network", "precision", "way", *_COMPARED.values()])
    for key, cells in _pivot(measured, ("network", "precision", "way")).items():
        marks = [_error(cells[name]) if name in cells else _NONE for name in _COMPARED]
        lines.append(_line([*key, *marks]))
    for precision, cells in _pivot(measured, ("precision",)).items():
        limits = [f"{cells[name]['tolerance']:.1e}" if name in cells else _NONE for name in _COMPARED]
        lines.append(_line(["tolerance", *precision, "", *limits]))
    bad = sum(not row["passed"] for row in measured)
    verdict = f"{bad} of {len(measured)} are beyond their tolerance" if bad else f"all {len(measured)} are within"
    return [*lines, "", f"Norms of the differences over those of the values (of the chain: over its move); {verdict}."]


def rates(rows: Sequence[Row]) -> list[str]:
    """Rates of every case in every precision and way, and the matrix peaks that they are shares of."""
    lines: list[str] = []
    peaks = [row for row in rows if row.get("what") == "matrix peak"]
    if peaks:
        said = ", ".join(f"{row['precision']} {row['tflops']:.3g}" for row in peaks)
        lines += [f"TFLOP/s of a large matrix product: {said}.", ""]
    measured = [row for row in rows if "seconds" in row and "case" in row]
    if not measured:
        return lines
    lines += _head(
        [
            "preset, setting", "batch", "precision", "way", "forward, TFLOP/s", "gradient, TFLOP/s", "of peak",
            "chain, s", "update, s", "images/s", "score matching, images/s", "first gradient, s",
        ]
    )  # fmt: skip
    pivot = _pivot(measured, ("case", "batch", "precision", "way"))
    for (case, *key), cells in pivot.items():
        gradient, update, matching = cells.get("gradient", {}), cells.get("update", {}), cells.get("score matching", {})
        names = [case, *gradient.get("alike", [])]
        lines.append(
            _line(
                [
                    "; ".join(name.replace(":", ", ") for name in names), *map(str, key),
                    _number(cells.get("forward", {}).get("tflops")), _number(gradient.get("tflops")),
                    _percent(gradient.get("share_of_peak")), _number(cells.get("chain", {}).get("seconds")),
                    _number(update.get("seconds")), _number(update.get("images_per_second")),
                    _number(matching.get("images_per_second")), _number(gradient.get("first_seconds")),
                ]
            )
        )  # fmt: skip
    return [*lines, *_layouts(pivot)]


def _layouts(pivot: dict[tuple[Any, ...], dict[str, Row]]) -> list[str]:
    """The image gradient beside its bare convolutions, which lie in memory in either order."""
    lines = [
        "",
        *_head(["preset, setting", "precision", "gradient, s", "bare, channels-last, s", "bare, contiguous, s"]),
    ]
    count = len(lines)
    for (case, _, precision, _), cells in pivot.items():
        bare = [
            cells.get(f"bare convolutions, {layout}", {}).get("seconds") for layout in ("channels-last", "contiguous")
        ]
        if any(bare):
            gradient = cells.get("gradient", {}).get("seconds")
            lines.append(_line([case.replace(":", ", "), precision, *map(_number, (gradient, *bare))]))
    return lines if len(lines) > count else []


def memory(rows: Sequence[Row]) -> list[str]:
    """Estimated and real peaks."""
    pivot = _pivot([row for row in rows if "real" in row], ("case", "batch", "precision"))
    if not pivot:
        return []
    lines = _head(
        ["preset, setting", "batch", "precision", "chain: estimated / real", "update: estimated / real", "reserved"]
    )
    worst = 1.0
    for (case, batch, precision), cells in pivot.items():
        sizes: list[str] = []
        for part in ("chain", "update"):
            cell = cells.get(part)
            sizes.append(f"{mebibytes(cell['estimated'])} / {mebibytes(cell['real'])}" if cell else _NONE)
            if cell and abs(cell["ratio"] - 1) > abs(worst - 1):
                worst = cell["ratio"]
        held = mebibytes(cells["reserved"]["real"]) if "reserved" in cells else _NONE
        lines.append(_line([case.replace(":", ", "), str(batch), precision, *sizes, held]))
    return [
        *lines,
        "",
        f"The real one is at most {abs(worst - 1):.1%} {'more' if worst >= 1 else 'less'} than estimated.",
    ]


def gaps(rows: Sequence[Row]) -> list[str]:
    """How long no kernel runs, and which kernels take most."""
    found = [row for row in rows if row.get("what") == "kernels" and "idle_share" in row]
    traces = [row["file"] for row in rows if row.get("what") == "trace"]
    lines: list[str] = []
    if found:
        lines += _head(["preset, setting", "batch", "way", "kernels", "busy, ms", "no kernel runs", "longest gap, µs"])
    for row in found:
        numbers = [
            str(row["kernels"]),
            _number(row["busy_ms"]),
            _percent(row["idle_share"]),
            _number(row["largest_gap_us"]),
        ]
        lines.append(_line([row["case"].replace(":", ", "), str(row["batch"]), row["way"], *numbers]))
    kernels = [row for row in rows if row.get("what") == "kernel"]
    if kernels:
        lines += ["", *_head(["preset, setting", "way", "kernel", "runs", "ms"])]
    for row in kernels:
        name = row["name"] if len(row["name"]) <= 90 else row["name"][:90] + "…"
        cells = [row["case"].replace(":", ", "), row["way"], f"`{name}`", str(row["count"]), _number(row["ms"])]
        lines.append(_line(cells))
    if traces:
        lines += ["", f"Traces for chrome://tracing or ui.perfetto.dev: {', '.join(traces)}."]
    return lines


def pipeline(rows: Sequence[Row]) -> list[str]:
    """How long steps wait for images."""
    lines: list[str] = []
    alone = next((row for row in rows if row.get("what") == "loader alone"), None)
    if alone is not None:
        lines += [f"The loader alone gives {alone['images_per_second']:.0f} images/s.", ""]
    fed = [row for row in rows if "waiting_share" in row]
    if fed:
        lines += _head(["fed", "batch", "precision", "steps", "images/s", "waits for images (goal 1 %)"])
    for row in fed:
        cells = [row["what"], str(row["batch"]), row["precision"], str(row["steps"]), _number(row["images_per_second"])]
        lines.append(_line([*cells, f"{row['waiting_share']:.2%}"]))
    return lines


def training(rows: Sequence[Row]) -> list[str]:
    """What was trained, and how it went."""
    data = next((row for row in rows if row.get("what") == "data"), None)
    steps = [row for row in rows if row.get("what") == "step"]
    drawn = next((row for row in rows if row.get("what") == "samples"), None)
    if data is None:
        return []
    name = data["name"] if data["name"] != "digits" else "digits, for want of Fashion-MNIST"
    made = steps[-1]["step"] if steps else 0
    said = f"{name}: a U-Net of width {data['width']}, {made} of {data['steps']} steps of {data['batch']} images"
    if steps:
        said += f", loss {float(steps[-1]['loss']):.4g} at the end, {steps[-1]['images_per_second']:.0f} images/s"
    if drawn is not None:
        said += f"; {drawn['images']} images drawn, {drawn['images_per_second']:.3g} a second"
    return [said + "."]


def _pivot(rows: Iterable[Row], keys: tuple[str, ...]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Rows by the values of some of their fields, and then by what they are of."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), {})[row["what"]] = row
    return found


def _error(row: Row) -> str:
    return f"{float(row['error']):.1e}" + ("" if row["passed"] else " **too large**")


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
