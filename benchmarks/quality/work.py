"""What the command does: all settings from all seeds, then the tables and pictures."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from benchmarks.quality.calibration import Ratio, as_json, calibrate, calibration_table, from_json
from benchmarks.quality.data import check_source, load_data
from benchmarks.quality.features import feature_network
from benchmarks.quality.options import Options
from benchmarks.quality.record import (
    CALIBRATION,
    CURVES,
    FEATURES,
    REFERENCE,
    SCORES,
    TABLE,
    Record,
    write_atomically,
    write_json,
)
from benchmarks.quality.report import Points, draw_curves, table
from benchmarks.quality.runs import SHEET, Run, preset_budget, schedule_of, write_sheet
from benchmarks.quality.scores import Scorer
from benchmarks.quality.settings import SETTINGS
from drl_dist.common.images import Panel
from drl_dist.data.subset import representative
from drl_dist.training.guard import DivergedError


def compare_all(options: Options) -> str:
    """Train and score what is missing; the tables.

    Raises:
        UserError: the folder, or the source of the images, cannot be used.
    """
    torch.set_num_threads(options.threads)
    check_source(options.data, options.source)
    asked = {"data": options.data, "budget": options.budget, "images": options.images, "points": list(options.points)}
    record = Record.open(options.out, {"benchmark": "quality", **asked})
    missing = [
        (seed, name)
        for seed in options.seeds
        for name in options.settings
        if any(record.point(name, SETTINGS[name], seed, point) is None for point in range(len(options.points)))
    ]
    if missing or not (record.folder / REFERENCE).exists():
        data = load_data(options.data, options.source)
        network, accuracy = feature_network(data, record.folder / FEATURES)
        print(f"feature network: {accuracy:.1%} of held-out images right", file=sys.stderr, flush=True)
        scorer = Scorer.of(network, data)
        write_json(record.folder / REFERENCE, scorer.reference())
        some = data.held_out[representative(len(data.held_out), min(SHEET, len(data.held_out)))]
        write_sheet(record, "held-out", Panel(title="real", images=some, columns=8), f"held-out images of {data.name}")
        budget = preset_budget(data) if options.budget is None else options.budget * 1e9
        for number, (seed, name) in enumerate(missing, 1):
            setting = SETTINGS[name]
            title = f"{setting.label}, seed {seed} ({number} of {len(missing)})"
            schedule = schedule_of(setting, data, seed, budget)
            images, points = options.images, options.points
            Run(title, name, setting, seed, schedule, data, record, scorer, images, points).finish()
            if number < len(missing):
                # As soon as there is something to see.
                _report(record, options)
    return _report(record, options)


def calibrate_all(options: Options) -> str:
    """Measure what is missing on Gaussian images; the table.

    Raises:
        UserError: the folder, or the source of the images, cannot be used.
    """
    torch.set_num_threads(options.threads)
    check_source(options.data, options.source)
    asked = {"data": options.data, "budget": options.budget}
    record = Record.open(options.out, {"benchmark": "quality --calibration", **asked})
    data = load_data(options.data, options.source)
    budget = preset_budget(data) if options.budget is None else options.budget * 1e9
    found: dict[str, list[Ratio]] = {}
    for seed in options.seeds:
        for name in options.settings:
            setting = SETTINGS[name]
            point = record.point(name, setting, seed, 0)
            if point is None:
                try:
                    levels = calibrate(setting, options.data, seed, budget * len(data.train))
                except DivergedError:
                    levels = []
                point = {"levels": as_json(levels)}
                record.add_point(name, setting, seed, 0, point)
            found[f"{setting.label}, seed {seed}"] = from_json(point["levels"])
    text = calibration_table(found)
    write_atomically(record.folder / CALIBRATION, text)
    return text


def _report(record: Record, options: Options) -> str:
    """Write the tables, the curves and all numbers of the trainings that are finished; the tables."""
    reference: dict[str, Any] = json.loads((record.folder / REFERENCE).read_text())
    results: Points = {}
    for name in options.settings:
        runs = [
            [record.point(name, SETTINGS[name], seed, point) for point in range(len(options.points))]
            for seed in options.seeds
        ]
        if finished := [[point for point in run if point is not None] for run in runs if None not in run]:
            results[name] = finished
    text = table(results, reference, options.points)
    numbers = [point for runs in results.values() for run in runs for point in run]
    write_json(record.folder / SCORES, {"reference": reference, "points": numbers})
    write_atomically(record.folder / TABLE, text)
    draw_curves(results, reference, record.folder / CURVES)
    return text
