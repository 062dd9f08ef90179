"""The bias of inpainting and denoising on exact energies: ``python -m benchmarks.editing``.

The data are Gaussian, so all energies are known, and every mean and variance of what is drawn follows without a single
draw. A trained network adapts to its own short chains; what is printed is the part of the bias that lies in the
procedure, its numbers of rounds and of steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from drl_dist.build import build_posterior_sampler
from drl_dist.common.program import entry_point
from drl_dist.config.presets import preset
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.energy.analytic import CorrelatedGaussian
from drl_dist.sampling.inpainting import PosteriorSampler
from tests.sampling import worlds

VARIANCES = (0.01, 0.25, 1.0)
"""Of the data, in directions that are denoised: nearly flat, as a single pixel, as the largest of a picture."""
GREY_LEVELS = 127.5


def experiments() -> dict[str, Experiment]:
    """What is compared, by the name it is printed under."""
    t6, t1k, unet = (preset("digits", setting) for setting in ("t6", "t1k", "unet"))
    geometric = dataclasses.replace(t6, diffusion=dataclasses.replace(t6.diffusion, ladder="geometric", num_levels=10))
    return {
        "t6, K = 30": t6,
        "t6, K = 3000": with_fields(t6, num_chain_steps=3000),
        "geometric, T = 10, K = 30": with_fields(geometric, step_rule="bound", bound_fraction=0.9),
        "setting unet, K = 2": unet,
        "the same, chains start at x_noisy": with_fields(unet, start="x_noisy"),
        "the same, K = 10": with_fields(unet, num_chain_steps=10),
        "the same, plain Langevin, K = 3": with_fields(unet, kernel="langevin", num_chain_steps=3, bound_fraction=0.9),
        "t1k": t1k,
        "t1k, spread of the transition": with_fields(t1k, normal_spread="transition"),
    }


def with_fields(experiment: Experiment, **fields: Any) -> Experiment:
    """An experiment with other chains."""
    return dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, **fields))


def exact(experiment: Experiment, num_rounds: int) -> PosteriorSampler:
    """The sampler of an experiment, with chains that do not sharpen, and the noise of x_0 left in what it draws."""
    return dataclasses.replace(build_posterior_sampler(experiment, num_rounds), noise_scale=1.0, end=None)


def inpainting(experiment: Experiment, num_rounds: int) -> tuple[list[float], list[float]]:
    """Means and standard deviations of two hidden pixels as shares of the true ones.

    Four pixels in a row have standard deviation .5, neighbours are correlated by .9, and the first two are observed.
    """
    sampler, places = exact(experiment, num_rounds), torch.arange(4, dtype=torch.float64)
    data = CorrelatedGaussian(0 * places, 0.25 * 0.9 ** (places[:, None] - places[None, :]).abs())
    x = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    projection = torch.diag(x)
    found = worlds.distribution_of_completions(sampler, data, projection, x)
    ladder = sampler.ladder
    truth = data.affine(float(ladder.scale[0]), float(ladder.std[0])).given(projection[:2], x[:2])
    spread = (found.covariance.diagonal()[2:] / truth.covariance.diagonal()[2:]).sqrt()
    return (found.mean / truth.mean)[2:].tolist(), spread.tolist()


def denoising(experiment: Experiment, noise_std: float) -> Mapping[float, tuple[float, float]]:
    """Slope of the mean over the noisy image, and standard deviation, as shares of the true ones, by variance.

    Args:
        experiment: of the model.
        noise_std: of the noise, in units of the data.
    """
    sampler = exact(experiment, 1)
    ladder, levels = sampler.ladder, sampler.levels
    first = sampler.start_level(noise_std)
    found: dict[float, tuple[float, float]] = {}
    for variance in VARIANCES:
        data = CorrelatedGaussian(torch.zeros(1).double(), torch.tensor([[variance]]).double())
        scale = float(ladder.cumulative_scale[first])
        further = math.sqrt((scale * noise_std) ** 2 - float(ladder.cumulative_std[first]) ** 2)
        slope, spread = float(levels.transition_scale[first]) * scale, 0.0
        for t in reversed(range(first + 1)):
            factor, precision = float(levels.transition_scale[t]), float(levels.recovery_precision[t])
            step, prior = float(levels.step_size[t]), float(data.level(ladder, t, factor).precision)
            if t == first:
                std = factor * further
                precision, step = std**-2, step * min(1.0, std / float(ladder.std[t + 1]))
            if sampler.num_chain_steps:
                kept_each, num_draws = 1 - step**2 / 2 * (prior + precision), sampler.num_draws[t]
                left = kept_each**num_draws
                towards, around = 1.0, 0.0
                if sampler.start is not None:
                    towards, around = tweedie_start(ladder, data, t, factor, noise_std if t == first else None)
                gain = left * towards + (1 - left) * precision / (prior + precision)
                if sampler.averages_noise:
                    half = torch.tensor([[step / 2]]).double()
                    kept = float(worlds.averaged(torch.tensor([[kept_each]]).double(), half, num_draws)[1])
                else:
                    kept = step**2 / (1 - kept_each**2) * (1 - left**2)
                kept += (left * around) ** 2
            else:
                gain = 1 - prior / precision
                noise = 0.0 if levels.noise_precision is None else float(levels.noise_precision[t])
                kept = 1 / (precision + noise)
            slope, spread = gain * slope / factor, (gain**2 * spread + kept) / factor**2
        first_scale, first_std = float(ladder.scale[0]), float(ladder.std[0])
        x_0 = data.affine(first_scale, first_std)
        rest = math.sqrt((first_scale * noise_std) ** 2 - first_std**2)
        one: Tensor = torch.eye(1).double()
        truth = x_0.given(one, torch.tensor([first_scale]).double(), rest)
        found[variance] = (slope / float(truth.mean), math.sqrt(spread / float(truth.covariance)))
    return found


def tweedie_start(
    ladder: NoiseLadder, data: CorrelatedGaussian, t: int, factor: float, noise_std: float | None
) -> tuple[float, float]:
    """Of a single pixel: the slope of the start of a chain over what is known, and its standard deviation.

    What is known is x_{t+1}, or the noisy image in the units of y_t if its noise is given.
    """
    if noise_std is None:
        matrix, spread = worlds.tweedie_start(ladder, data, t, factor)
        return float(matrix), spread
    signal, variance = ladder.cumulative_scale, float(data.covariance)
    below, above = (float(ladder.cumulative_std[i] / signal[i]) for i in (t, t + 1))
    share = (noise_std**-2 - above**-2) / (below**-2 - above**-2)
    # There is no energy above the topmost level: x_T is taken to be white.
    is_top = t + 1 == ladder.num_levels
    further = float(signal[t + 1]) ** 2 if is_top else 1 / (variance + above**2)
    slope = share / (variance + below**2) + (1 - share) * further
    left = noise_std**2 - below**2
    return 1 - left * slope, factor * float(signal[t]) * below * math.sqrt(left) / noise_std


def main() -> int:
    """Print all of it; the exit status."""
    argparse.ArgumentParser(description=__doc__).parse_args()

    def shares(values: list[float]) -> str:
        return " ".join(f"{value:.3f}" for value in values)

    print("inpainting: means | standard deviations of two hidden pixels as shares of the true ones")
    for name, experiment in experiments().items():
        for num_rounds in (1, 2, 4, 8):
            means, stds = inpainting(experiment, num_rounds)
            print(f"{name}, rounds {num_rounds}: {shares(means)} | {shares(stds)}", flush=True)
    print("denoising: slopes | standard deviations as shares of the true ones, for data of variance", *VARIANCES)
    for name, experiment in experiments().items():
        for grey in (30, 60, 120):
            slopes, stds = map(list, zip(*denoising(experiment, grey / GREY_LEVELS).values(), strict=True))
            print(f"{name}, noise {grey}: {shares(slopes)} | {shares(stds)}", flush=True)
    return 0


if __name__ == "__main__":
    entry_point(main)
