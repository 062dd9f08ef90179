"""The report of a run as JSON and as a page; needs no torch."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerator import pictures
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.record import PartRecord, read
from benchmarks.accelerator.tables import agreement, gaps, memory, pipeline, rates, training

REPORT, PAGE = "report.json", "report.md"
_TABLES = {
    "equality": agreement,
    "throughput": rates,
    "memory": memory,
    "gaps": gaps,
    "pipeline": pipeline,
    "training": training,
}


def write_report(folder: Path, *, with_pictures: bool = True) -> Path:
    """Write ``report.json`` and ``report.md`` from what has been found so far, each at once; the page's path."""
    found = read(folder)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "parts": {name: _plain(found[name]) for name in PARTS if name in found},
        "pictures": pictures.draw(folder, *_of_training(found)) if with_pictures else [],
    }
    _write(folder / REPORT, json.dumps(report, indent=1) + "\n")
    _write(folder / PAGE, "\n".join(["# A run on an accelerator", "", *page_of(report)]) + "\n")
    return folder / PAGE


def page_of(report: dict[str, Any], *, level: int = 2) -> list[str]:
    """The lines of a report: where it was made, how every part ended, and their tables.

    Args:
        report: as ``report.json`` has it.
        level: of the parts' headings.
    """
    parts: dict[str, Any] = report["parts"]
    lines = [f"({machine_of(report)}.)", "", "| part | how it ended | seconds |", "|---|---|---|"]
    for name, part in parts.items():
        ended = part["status"] + (f": {part['message']}" if part["message"] else "")
        lines.append(f"| {PARTS[name].title} | {ended} | {part['seconds']:.0f} |")
    for name, part in parts.items():
        if name not in _TABLES:
            continue
        told = [*_TABLES[name](part["rows"]), *_left_out(part["rows"])]
        if name == "training":
            told += ["", *report["pictures"]] if report["pictures"] else []
        if any(told):
            lines += ["", f"{'#' * level} {PARTS[name].title}", "", *told]
    return lines


def machine_of(report: dict[str, Any]) -> str:
    """The machine in one line: GPU, its memory and driver, processor, torch and date."""
    rows = {row["what"]: row for row in report["parts"].get("machine", {"rows": []})["rows"]}
    words: list[str] = []
    if gpu := rows.get("gpu"):
        kind = "a slice of " if gpu["is_slice"] else ""
        words.append(f"{kind}{gpu['name']}, {gpu['memory_gib']:.0f} GiB, {gpu['multiprocessors']} multiprocessors")
        driver = rows.get("driver", {})
        words.append(f"driver {driver.get('driver_version', 'unknown')}")
    if processor := rows.get("processor"):
        words.append(f"{processor['usable_cores']} cores of {processor['model']}")
    if libraries := rows.get("libraries"):
        words.append(f"torch {libraries['torch']}")
    return ", ".join([*(words or ["an unknown machine"]), report["date"]])


def _left_out(rows: list[dict[str, Any]]) -> list[str]:
    """What was skipped, what failed, and what else is to be said, one a line."""
    lines: list[str] = []
    for row in rows:
        for kind in ("failed", "skipped", "note"):
            if kind in row:
                where = ", ".join(
                    str(row[key]) for key in ("case", "network", "precision", "way", "what") if key in row
                )
                lines.append(f"- {where}: {'' if kind == 'note' else f'{kind}: '}{row[kind]}")
    return ["", *dict.fromkeys(lines)] if lines else []


def _of_training(found: dict[str, PartRecord]) -> tuple[list[dict[str, Any]], str]:
    rows = found["training"].rows if "training" in found else []
    data = next((row for row in rows if row["what"] == "data"), None)
    about = ""
    if data is not None:
        about = (
            f"{data['name']}, U-Net of width {data['width']}, {data['steps']} steps of {data['batch']} images in "
            f"{data['precision']}, seed 0"
        )
    return [row for row in rows if row["what"] == "step"], about


def _plain(part: PartRecord) -> dict[str, Any]:
    values = dataclasses.asdict(part)
    del values["until"]
    if part.status == "running":
        values["status"] = "cut short"
    return values


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
