"""Tables of what was found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.serving_load.server import TITLES


def tables(found: dict[str, Any]) -> Iterator[str]:
    """A table for each group of parts that were measured, in Markdown."""
    if visits := list(_visits(found)):
        yield _table("visitors | lost | wrong | pixels one grey level apart | p50, s | p95, s", visits)
    if losses := [_loss(role, found[role]) for role in ("replica", "front") if role in found]:
        yield _table("killed | next frame, s | longest without a frame, s | longest without any event, s", losses)
    for rates in (found[name] for name in ("rates", "long_rates") if name in found):
        yield _table("way | images/s | p50, s | p95, s", [_rate(name, way) for name, way in rates["ways"].items()])
        ratios = [[name, _spread(ratio)] for name, ratio in rates["ratios"].items()]
        yield _table(f"{rates['batch']} visitors together | times as fast", ratios)
    if "leavers" in found:
        left = found["leavers"]
        served = f"the next image took {left['next_image_seconds']:.2f} s"
        yield (
            f"After {left['visitors']} visitors who left at once, {served}; then {left['active']:g} requests were in "
            f"the batch, and {left['waiting']:g} waited."
        )
    if "hostile" in found:
        rows = [_attack(name, attack) for name, attack in found["hostile"].items()]
        yield _table("sent | answers | " + " | ".join(f"{role}, MiB: at most (after)" for role in TITLES), rows)
    memory = found["memory"]
    rows = [[role, *(f"{memory[when][role]:.0f}" for when in ("before", "after"))] for role in TITLES]
    yield _table("process | MiB before everything | MiB after it", rows)
    yield f"Load at the end: {found['load']:.1f}."


def _visits(found: dict[str, Any]) -> Iterator[list[str]]:
    parts = {
        "at once": found.get("company"),
        "as the replica was killed": found.get("replica", {}).get("compared"),
        "as the front was killed": found.get("front", {}).get("compared"),
        "of these, asking again": found.get("front", {}).get("asked_again"),
    }
    for name, part in parts.items():
        if part is not None:
            share = f"{part['pixels_one_apart']} of {part['pixels']}"
            times = [f"{part[name]:.2f}" for name in ("p50", "p95")]
            yield [f"{part['visitors']} {name}", str(part["lost"]), str(part["wrong"]), share, *times]


def _loss(role: str, loss: dict[str, Any]) -> list[str]:
    return [role, *(f"{loss[name]:.1f}" for name in ("recovery", "longest_pause", "longest_silence"))]


def _rate(name: str, way: dict[str, Any]) -> list[str]:
    return [name, _spread(way["images_per_second"]), f"{way['p50']:.3g}", f"{way['p95']:.3g}"]


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.3g} ({values['min']:.3g} to {values['max']:.3g})"


def _attack(name: str, attack: dict[str, Any]) -> list[str]:
    answers = "; ".join(f"{count} x {answer}" for answer, count in attack["answers"].items())
    return [name, answers, *(f"{attack['peak'][role]:.0f} ({attack['after'][role]:.0f})" for role in TITLES)]


def _table(head: str, rows: list[list[str]]) -> str:
    lines = [f"| {head} |", "|---" * (head.count(" | ") + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
