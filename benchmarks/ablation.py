"""Table 2 of the paper in miniature: every setting on scikit-learn's digits, with one budget and one feature network.

    python -m benchmarks.ablation --out FOLDER [--settings t6 t1k ... --seeds 0 1 2 --budget 1000 --threads 1]

Each setting is trained from each seed with the same network and the same amount of arithmetic. A step costs 2K + 6
forward passes per image, or 8 without a chain, and the budget is the cost of ``--budget`` steps of T = 6, K = 30.
Learning rate, warm-up and moving average are adapted to the number of steps that this allows. Then images are generated
from the averaged weights and scored, with the hidden layer of a small network as features, which is trained here on the
digits' labels. Results are stored in FOLDER one by one: the same command resumes. Needs the extra `evaluation`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.digit_features import digits, train_feature_network
from benchmarks.results import open_results
from drl_dist.build import build_sampler
from drl_dist.common.batch import Batch
from drl_dist.common.figures import figure_png, new_figure
from drl_dist.common.images import Panel, to_uint8, to_unit_range
from drl_dist.common.places import path_here
from drl_dist.common.program import entry_point
from drl_dist.common.progress import progress
from drl_dist.common.validation import whole_number
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.evaluation.distances import fid, inception_score, kid
from drl_dist.evaluation.features import FeatureNetwork, features_of
from drl_dist.jobs.common.output.sheet import sheet_of
from drl_dist.training.chain import GradientEngine
from drl_dist.training.guard import DivergedError
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

SETTINGS = {
    "t1": ("T=1, K=180", "t1", None),
    "t1k": ("T=1000, K=0", "t1k", None),
    "t1k_dsm": ("T=1000, K=0 (DSM)", "t1k_dsm", None),
    "t6_k10": ("T=6, K=10", "t6", 10),
    "t6": ("T=6, K=30", "t6", None),
    "t6_k50": ("T=6, K=50", "t6", 50),
}
"""Rows of Table 2: label, setting of the preset, and K if it differs from the setting's own."""
PAPER_FID = {"t1": 32.12, "t1k": 22.58, "t1k_dsm": 21.76, "t6_k10": math.nan, "t6": 9.58, "t6_k50": 9.36}
"""On CIFAR-10 (Table 2); no number where training was unstable."""
FORWARDS_OF_T6 = 66
NUM_IMAGES = 1024
SHOWN = 24
CURVE_POINTS = 5
TABLE, CURVES = "table.md", "ablation_curves.png"
_RESULT = re.compile(rf"({'|'.join(SETTINGS)})-\d+-\d+\.json")
CURVE_IMAGES = 128


def main() -> int:
    """Parse; train and score what is missing; print the table and draw the pictures; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_here, required=True, help="folder of results, pictures and the table")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=whole_number, default=[0, 1, 2])
    parser.add_argument("--budget", type=whole_number, default=1000, help="in steps of T=6, K=30")
    parser.add_argument("--threads", type=whole_number, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if arguments.budget < 100:
        parser.error(f"--budget: got {arguments.budget}, expected at least 100; give more")
    torch.set_num_threads(arguments.threads)
    names = [f"{name}-{seed}-{arguments.budget}" for name in arguments.settings for seed in arguments.seeds]
    summary = [TABLE, CURVES, *(f"{name}.png" for name in names)]
    # Those of other settings, seeds and budgets count as well.
    earlier = [path.name for path in arguments.out.glob("*.json") if _RESULT.fullmatch(path.name)]
    open_results(parser, arguments.out, earlier, summary)
    real, labels = digits()
    network, accuracy = train_feature_network(real, labels, seed=0)
    print(f"feature network: {accuracy:.1%} of held-out digits right")
    for seed in arguments.seeds:
        for name in arguments.settings:
            place = arguments.out / f"{name}-{seed}-{arguments.budget}.json"
            if not place.exists():
                told = measure(name, seed, arguments.budget, real, network, place.with_suffix(".png"))
                place.write_text(json.dumps(told, indent=2) + "\n")
    results = {
        name: [
            json.loads((arguments.out / f"{name}-{seed}-{arguments.budget}.json").read_text())
            for seed in arguments.seeds
        ]
        for name in arguments.settings
    }
    text = table(results, real, network)
    (arguments.out / TABLE).write_text(text)
    print(text)
    draw_curves(results, arguments.out / CURVES)
    return 0


def experiment_of(name: str, seed: int, budget: int) -> Experiment:
    """The preset `digits` in one setting, with the number of steps that the budget allows and a matching optimiser."""
    _, setting, num_chain_steps = SETTINGS[name]
    base = preset("digits", setting)
    mcmc = base.mcmc if num_chain_steps is None else dataclasses.replace(base.mcmc, num_chain_steps=num_chain_steps)
    forwards = 2 * mcmc.num_chain_steps + 6 if mcmc.num_chain_steps else 8
    num_steps = round(budget * FORWARDS_OF_T6 / forwards)
    return dataclasses.replace(
        base,
        mcmc=mcmc,
        optim=dataclasses.replace(
            base.optim,
            learning_rate=1e-3,
            warmup_steps=num_steps // 10,
            half_life_steps=num_steps // 4,
            ema_decay=1 - 10 / num_steps,
        ),
        train=dataclasses.replace(base.train, seed=seed, num_steps=num_steps),
    )


def measure(name: str, seed: int, budget: int, real: Tensor, network: FeatureNetwork, picture: Path) -> dict[str, Any]:
    """Train one setting from one seed and score it; its samples go into `picture`."""
    experiment = experiment_of(name, seed, budget)
    num_steps = experiment.train.num_steps
    state = TrainState.create(experiment)
    step = TrainStep(state, experiment, EngineConfig())
    batch_size = experiment.train.batch_size
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    curve: list[tuple[int, float]] = []
    seconds, diverged = 0.0, None
    with progress(f"{SETTINGS[name][0]}, seed {seed}", num_steps, 0, "steps") as advance:
        for number in range(num_steps):
            images = real[torch.randint(len(real), (batch_size,), generator=order)]
            positions = torch.arange(number * batch_size, (number + 1) * batch_size)
            began = time.perf_counter()
            try:
                losses.append(float(step(Batch(images, positions)).loss))
            except DivergedError as error:
                diverged = f"step {number + 1}: {error}"
                break
            seconds += time.perf_counter() - began
            advance(1)
            if (number + 1) % (num_steps // CURVE_POINTS) == 0:
                some = generate(state, experiment, CURVE_IMAGES, seed)
                curve.append((number + 1, score(some, real, network)["fid"]))
    generated = generate(state, experiment, NUM_IMAGES, seed)
    panel = Panel(title="samples of the averaged weights", images=to_uint8(generated[:SHOWN]), columns=SHOWN)
    caption = f"digits, {SETTINGS[name][0]}, step {len(losses)} of {num_steps}, seed {seed}"
    picture.write_bytes(sheet_of([panel], caption))
    return {
        "setting": SETTINGS[name][0],
        "seed": seed,
        "num_steps": num_steps,
        "seconds_per_step": seconds / max(1, len(losses)),
        "diverged": diverged,
        "loss": losses,
        "fid_curve": curve,
        "range": [float(generated.min()), float(generated.max())],
        **score(generated, real, network),
    }


def generate(state: TrainState, experiment: Experiment, count: int, seed: int) -> Tensor:
    """Images of the averaged weights, (count, 1, 8, 8) float32."""
    engine = GradientEngine(state.ema_network(), EngineConfig(), is_frozen=True)
    sampler, noise = build_sampler(experiment), PhiloxNoise(seed)
    batches = torch.arange(count).split(256)
    return torch.cat([sampler.sample(engine.raw_at, noise, ids, (1, 8, 8)) for ids in batches])


def score(generated: Tensor, real: Tensor, network: FeatureNetwork) -> dict[str, float]:
    """FID, KID and inception score in the features of `network`; infinite where the images are not finite."""
    if not bool(generated.isfinite().all()):
        return {"fid": math.inf, "kid": math.inf, "inception_score": 1.0}
    ours, theirs = (features_of(network, images.split(256)) for images in (to_uint8(generated), real))
    assert ours.logits is not None
    return {
        "fid": fid(ours.values, theirs.values),
        "kid": kid(ours.values, theirs.values)[0],
        "inception_score": inception_score(ours.logits)[0],
    }


def table(results: dict[str, list[dict[str, Any]]], real: Tensor, network: FeatureNetwork) -> str:
    """A Markdown table: medians and ranges over the seeds."""
    half = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    floor = score(to_unit_range(real[half[::2]]), real[half[1::2]], network)
    rows = [
        "| setting | FID: median (range) | KID | IS | steps | s per step | gradients per sample | FID in the paper |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in results.items():
        experiment = experiment_of(name, 0, 1000)
        values = {key: [run[key] for run in runs] for key in ("fid", "kid", "inception_score", "seconds_per_step")}
        gradients = experiment.diffusion.num_levels * max(1, experiment.mcmc.num_chain_steps)
        paper = "unstable" if math.isnan(PAPER_FID[name]) else f"{PAPER_FID[name]}"
        rows.append(
            f"| {SETTINGS[name][0]} | {statistics.median(values['fid']):.2f} "
            f"({min(values['fid']):.2f} to {max(values['fid']):.2f}) | {statistics.median(values['kid']):.3f} "
            f"| {statistics.median(values['inception_score']):.2f} | {runs[0]['num_steps']} "
            f"| {statistics.median(values['seconds_per_step']):.3f} | {gradients} | {paper} |"
        )
    rows.append(
        f"| one half of the digits against the other | {floor['fid']:.2f} | {floor['kid']:.3f} "
        f"| {floor['inception_score']:.2f} | | | | |"
    )
    return "\n".join(rows) + "\n"


def draw_curves(results: dict[str, list[dict[str, Any]]], place: Path) -> None:
    """Training losses (moving average over 25 steps), and FID of a few images as training continues (Figure 9).

    Each objective's losses have a panel of their own: they are different quantities.
    """
    objective = {name: experiment_of(name, 0, 1000).optim.objective for name in results}
    figure = new_figure(5 * (1 + len(set(objective.values()))), 4)
    *panels, right = figure.subplots(1, 1 + len(set(objective.values())))
    panel = dict(zip(dict.fromkeys(objective.values()), panels, strict=True))
    for number, (name, (run, *_)) in enumerate(results.items()):
        losses = torch.tensor(run["loss"])
        smooth = losses.unfold(0, min(25, len(losses)), 1).mean(1)
        look: dict[str, Any] = {"label": run["setting"], "color": f"C{number}"}
        panel[objective[name]].plot(torch.linspace(0, 1, len(smooth)), smooth, linewidth=1, **look)
        steps, scores = zip(*run["fid_curve"], strict=True)
        right.plot([step / run["num_steps"] for step in steps], scores, marker="o", **look)
    for name, axes in panel.items():
        axes.set(xlabel="share of the budget", title=f"loss ({name}), mean of 25 steps")
        axes.set_yscale("symlog", linthresh=1e-4 if name == "recovery" else 1)
        axes.grid(alpha=0.3)
        axes.legend()
    right.set(xlabel="share of the budget", title=f"FID of {CURVE_IMAGES} images")
    right.set_ylim(bottom=0)
    right.grid(alpha=0.3)
    right.legend()
    seed = next(iter(results.values()))[0]["seed"]
    place.write_bytes(
        figure_png(figure, f"losses, and FID of samples, of the settings on digits as they train, seed {seed}")
    )


if __name__ == "__main__":
    entry_point(main)
