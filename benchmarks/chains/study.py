"""Training, or taking up what was trained; drawing in every way; the table."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.chains.exact import exact_model
from benchmarks.chains.model import Model, bases_of
from benchmarks.chains.normal import components_of, exactness_table, normal_model
from benchmarks.chains.sampler import Way, draw_pixels
from benchmarks.chains.ways import GROUPS
from benchmarks.quality.data import Data, load_data
from benchmarks.quality.features import feature_network
from benchmarks.quality.record import FEATURES, REFERENCE, TABLE, Record, write_atomically, write_json
from benchmarks.quality.runs import Run, schedule_of
from benchmarks.quality.scores import Scorer
from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.trainees import ENGINE, start
from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.common.progress import progress
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.training.chain import GradientEngine
from drl_dist.training.cost import count_flop
from drl_dist.training.state import TrainState

NAME = "unet"
"""The row of benchmarks.quality that is trained."""
WAYS, PERFECT = "ways", "perfect"


class KeepingRecord(Record):
    """Keeps the state of a run that is over."""

    def drop_state(self, name: str, seed: int) -> None:
        """Nothing is dropped."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked for."""

    out: Path
    seeds: Sequence[int]
    budget: float
    """GFLOP for each training image."""
    images: int
    groups: tuple[str, ...]
    threads: int
    is_exact: bool = False
    """Draw from the exact energies of the training images with noise instead."""


def study(asked: Study) -> str:
    """Do what is missing; the table.

    Raises:
        UserError: the folder cannot be used.
    """
    torch.set_num_threads(asked.threads)
    request = {"benchmark": "chains", "budget": asked.budget, "images": asked.images}
    if asked.is_exact:
        request = {"benchmark": "chains --exact", "images": asked.images}
    record = KeepingRecord.open(asked.out, request)
    (asked.out / WAYS).mkdir(exist_ok=True)
    ways = {label: way for group in asked.groups for label, way in GROUPS[group].items()}
    missing = [(seed, label) for seed in asked.seeds for label in ways if _found(asked.out, seed, label, ways) is None]
    if missing:
        _work(record, asked, ways, missing)
    text = _table(asked)
    write_atomically(asked.out / TABLE, text)
    return text


def _work(record: Record, asked: Study, ways: Mapping[str, Way], missing: Sequence[tuple[int, str]]) -> None:
    """Draw and score in the missing ways, (seed, label) each."""
    data = load_data("digits", "")
    network, _ = feature_network(data, asked.out / FEATURES)
    scorer = Scorer.of(network, data)
    write_json(asked.out / REFERENCE, scorer.reference())
    for seed in dict.fromkeys(seed for seed, _ in missing):
        model = (_exact if asked.is_exact else _trained)(record, data, scorer, seed, asked)
        mine = [label for one, label in missing if one == seed]
        with progress(f"ways of seed {seed}", len(mine), 0, "ways") as advance:
            for label in mine:
                advance(0, label)
                content = {"label": label, "seed": seed, "way": repr(ways[label])}
                content |= measure(model, ways[label], scorer, asked.images)
                write_json(_place(asked.out, seed, label), content)
                advance(1)
        write_atomically(asked.out / TABLE, _table(asked))


def normal_table(groups: Sequence[str]) -> str:
    """What the ways of these groups make of normal data; see `benchmarks.chains.normal`."""
    (experiment,) = SETTINGS[NAME].experiments("digits", 0)[-1:]
    variances = components_of(load_data("digits", "").train)
    return exactness_table(normal_model(variances, experiment), {group: GROUPS[group] for group in groups})


def measure(model: Model, way: Way, scorer: Scorer, num_images: int) -> dict[str, Any]:
    """Draw images in one way and score them; gradients and operations are those of one image."""
    flop = count_flop(lambda: draw_pixels(model, way, 1))
    model.num_gradients = 0
    draw_pixels(model, way, 1)
    gradients, began = model.num_gradients, time.perf_counter()
    images = draw_pixels(model, way, num_images)
    seconds = time.perf_counter() - began
    return {"gradients": gradients, "flop_per_image": flop, "seconds": seconds, **scorer.score(images)}


def model_of(state: TrainState, experiment: Experiment, data: Data) -> Model:
    """What a way of sampling knows, with the averaged weights."""
    ladder = build_ladder(experiment.diffusion)
    engine = GradientEngine(state.ema_network(), ENGINE, is_frozen=True)
    return Model(
        levels=build_levels(experiment, ladder),
        ladder=ladder,
        raw_at=engine.raw_at,
        bases=bases_of(to_unit_range(data.train)),
        noise=PhiloxNoise(experiment.train.seed),
        shape=tuple(data.train.shape[1:]),
    )


def table(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """A Markdown table: group -> label -> the scores of each seed."""
    head = ("way", "gradients", "MFLOP", "FID: mean (range)", "recognised", "seeds")
    lines = [_row(head), _row(["---"] * len(head))]
    for group, labels in results.items():
        for label, found in labels.items():
            fids = [one["fid"] for one in found]
            lines.append(
                _row(
                    [
                        f"{group}: {label}",
                        f"{found[0]['gradients']}",
                        f"{found[0]['flop_per_image'] / 1e6:.0f}",
                        f"{statistics.mean(fids):.2f} ({min(fids):.2f} to {max(fids):.2f})",
                        f"{statistics.mean(one['recognised'] for one in found):.2f}",
                        f"{len(found)}",
                    ]
                )
            )
    return "\n".join(lines) + "\n"


def _trained(record: Record, data: Data, scorer: Scorer, seed: int, asked: Study) -> Model:
    """The model of a seed, trained now or before."""
    setting = dataclasses.replace(SETTINGS[NAME], draws={})
    schedule = schedule_of(setting, data, seed, asked.budget * 1e9)
    title = f"{setting.label}, seed {seed}"
    Run(title, NAME, setting, seed, schedule, data, record, scorer, asked.images, points=(1.0,)).finish()
    experiment = schedule.stages[-1].experiment
    trainee = start(setting, experiment)
    record.load_state(NAME, seed, trainee.state)
    point = record.point(NAME, setting, seed, 0)
    assert point is not None
    print(f"{title}: {point['step']} steps, {point['seconds']:.0f} s", file=sys.stderr, flush=True)
    if point["diverged"]:
        raise RuntimeError(f"{title} diverged {point['diverged']}")
    return model_of(trainee.state, experiment, data)


def _exact(record: Record, data: Data, scorer: Scorer, seed: int, asked: Study) -> Model:
    """The model of a seed, which only keys the noise; what a perfect sampler would score is written down."""
    setting = SETTINGS[NAME]
    model, mixture = exact_model(data.train, setting.experiments(data.name, seed)[-1])
    perfect = mixture.draw(asked.images, torch.Generator().manual_seed(seed))
    write_json(record.folder / WAYS / f"{PERFECT}-{seed}.json", scorer.score(perfect))
    return model


def _table(asked: Study) -> str:
    results: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for group in asked.groups:
        for label in GROUPS[group]:
            seeds = [_found(asked.out, seed, label, GROUPS[group]) for seed in asked.seeds]
            if found := [one for one in seeds if one is not None]:
                results.setdefault(group, {})[label] = found
    return table(results)


def _found(out: Path, seed: int, label: str, ways: Mapping[str, Way]) -> dict[str, Any] | None:
    """The scores of a way as it is now; None if there are none."""
    place = _place(out, seed, label)
    if not place.exists():
        return None
    found = json.loads(place.read_text())
    return found if found["way"] == repr(ways[label]) else None


def _place(out: Path, seed: int, label: str) -> Path:
    return out / WAYS / f"{re.sub(r'[^a-zA-Z0-9.]+', '_', label)}-{seed}.json"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
