"""What a network learns of Gaussian data, whose density is known: are its directions as wide as the data's?

8x8 images from a normal distribution with mean 0: the smoothest patterns of the discrete cosine transform are large,
all the others flat. At every level the table has, as a ratio to the true variance of y_t,

- the learned one: the inverse of the average curvature of the learned log-density along a direction, over the true
  distribution of y_t. By Stein's identity the average Hessian is -E[grad f y'] times the inverse of the true
  covariance, so gradients are enough, and a network with kinks has a curvature too;
- the generated one: of the samples x_t on their way from white noise down to the images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.schedule import Schedule
from benchmarks.quality.settings import Overrides, Setting
from benchmarks.quality.trainees import ENGINE, EnergyTrainee, step_flop
from drl_dist.build import build_ladder, build_levels, build_sampler
from drl_dist.common.batch import Batch
from drl_dist.common.progress import progress
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.training.chain import GradientEngine

SIDE = 8
SMALL_IMAGES: Overrides = {"model": {"resolution": SIDE, "channels": 1}}
"""On top of any setting."""
NUM_LARGE, LARGE_STD, FLAT_STD = 6, 1.0, 0.1
"""Standard deviations of the six smoothest directions and of the other 58; those of pixels are about .3."""
NUM_DRAWS = 4096
MOST_LEVELS = 12
"""Longer ladders are shown at so many levels, evenly spread."""
_TOGETHER = 256


@dataclass(frozen=True)
class Ratio:
    """Ratios to the true variance at one level; infinite where there is no curvature that could hold a chain."""

    level: int
    learned_flat: float
    learned_large: float
    generated_flat: float
    generated_large: float


def directions() -> tuple[Tensor, Tensor]:
    """Orthonormal directions of images, (64, 64), one a row, smoothest first, and the data's variances along them."""
    places = torch.arange(SIDE, dtype=torch.float64)
    waves = torch.cos(math.pi * (places[None] + 0.5) * places[:, None] / SIDE)
    waves /= waves.norm(dim=1, keepdim=True)
    both = torch.einsum("iy,jx->ijyx", waves, waves).reshape(SIDE * SIDE, -1)
    frequency = (places[:, None] + places[None]).flatten()
    variances = torch.full((SIDE * SIDE,), FLAT_STD**2, dtype=torch.float64)
    variances[:NUM_LARGE] = LARGE_STD**2
    return both[frequency.argsort(stable=True)], variances


def draw_normal(variances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Images (count, 1, 8, 8) float32, normal with these variances along `directions`."""
    basis, _ = directions()
    along = torch.randn(count, len(variances), generator=generator, dtype=torch.float64) * variances.sqrt()
    return (along @ basis).float().reshape(count, 1, SIDE, SIDE)


def calibrate(setting: Setting, data: str, seed: int, budget: float) -> list[Ratio]:
    """Train a setting on Gaussian images and measure it.

    Args:
        data: whose preset it is based on.
        budget: floating-point operations in all.
    """
    experiments = setting.experiments(data, seed, SMALL_IMAGES)
    costs = [step_flop(setting, experiment) for experiment in experiments]
    schedule = Schedule.within(budget, experiments, [phase.share for phase in setting.phases], costs)
    trainee = EnergyTrainee(schedule.stages[0].experiment)
    _, variances = directions()
    generator = torch.Generator().manual_seed(seed)
    with progress(f"calibration of {setting.label}, seed {seed}", schedule.num_steps, 0, "steps") as advance:
        for stage in schedule.stages:
            trainee.begin(stage.experiment)
            count = stage.experiment.train.batch_size
            for step in range(stage.first_step, stage.first_step + stage.num_steps):
                # In the scale of 8-bit pixels, but not rounded to them: the data are exactly normal.
                images = (draw_normal(variances, count, generator) + 1) * 127.5
                trainee.step(Batch(images, torch.arange(step * count, (step + 1) * count)))
                advance(1)
    return ratios(trainee, schedule.stages[-1].experiment, seed)


def ratios(trainee: EnergyTrainee, experiment: Experiment, seed: int) -> list[Ratio]:
    """What the averaged weights have learned, at every level or at some of a long ladder."""
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    network = trainee.state.ema_network()
    engine = GradientEngine(network, ENGINE, is_frozen=True)
    basis, variances = directions()
    generator = torch.Generator().manual_seed(seed)
    count = min(levels.num_levels, MOST_LEVELS)
    shown = sorted({round(place) for place in torch.linspace(0, levels.num_levels - 1, count).tolist()})
    ids = torch.arange(NUM_DRAWS).split(_TOGETHER)
    sampler, noise, shape = build_sampler(experiment, network.curvature), PhiloxNoise(seed), (1, SIDE, SIDE)
    # From x_T to x_0; only the levels that are shown are kept.
    parts = [sampler.sample_levels(engine.raw_at, noise, some, shape, keep=shown) for some in ids]
    generated = dict(zip(reversed(shown), torch.cat(parts, dim=1), strict=True))
    found: list[Ratio] = []
    for t in shown:
        of_x = ladder.cumulative_scale[t] ** 2 * variances + ladder.cumulative_std[t] ** 2
        of_y = levels.transition_scale[t] ** 2 * of_x
        y = draw_normal(of_y, NUM_DRAWS, generator)
        level = torch.full((_TOGETHER,), t)
        gradient = torch.cat([engine.raw_at(level[: len(some)])(some)[1] for some in y.split(_TOGETHER)])
        curvature = -_along(gradient, y, basis) / _along(y, y, basis) * levels.energy_scale[t]
        x = generated[t]
        spread = _along(x, x, basis) / of_x
        relative = (curvature * of_y).split([NUM_LARGE, len(of_y) - NUM_LARGE])
        learned = [1 / float(group.mean()) if float(group.mean()) > 0 else math.inf for group in relative]
        drawn = [float(group.mean()) for group in spread.split([NUM_LARGE, len(of_y) - NUM_LARGE])]
        found.append(Ratio(t, learned[1], learned[0], drawn[1], drawn[0]))
    return found


def calibration_table(found: Mapping[str, Sequence[Ratio]]) -> str:
    """A Markdown table; a row for each run and level, and one for a run without any, which has diverged."""
    head = ("run", "level", "learned / true variance, flat", "large", "generated / true variance, flat", "large")
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for label, levels in found.items():
        if not levels:
            lines.append((label, "diverged", "", "", "", ""))
        for one in levels:
            numbers = (one.learned_flat, one.learned_large, one.generated_flat, one.generated_large)
            lines.append((label, str(one.level), *(f"{number:.3g}" for number in numbers)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_json(levels: Sequence[Ratio]) -> list[dict[str, Any]]:
    """The ratios as JSON, which has no infinity."""
    return [
        {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(one).items()}
        for one in levels
    ]


def from_json(levels: Sequence[Mapping[str, Any]]) -> list[Ratio]:
    """What `as_json` was given."""
    infinite: Any = math.inf
    return [Ratio(**{name: infinite if value is None else value for name, value in one.items()}) for one in levels]


def _along(one: Tensor, other: Tensor, basis: Tensor) -> Tensor:
    """Mean product of two sets of images (N, 1, 8, 8) along each direction, (64,)."""
    first, second = (images.double().flatten(1) @ basis.T for images in (one, other))
    return (first * second).mean(0)
