"""How curved a trained energy is, beside the bound that the steps of ``mcmc.step_rule bound`` are made for.

    python -m benchmarks.curvature --model URL [--num-images 64] [--seed 0]

At every level, where the model's own samples y_t are: the largest curvature of log p(y_t | x_{t+1}) along any
direction, by power iteration over Hessian-vector products, divided by the bound P_t = 1 / sigma_{t+1}**2 + 1 / s_t**2
that no data exceed; and the share of the model's own steps that a Metropolis test would accept. Curvatures well below
the bound would allow longer steps, those above it need shorter ones: a ratio of one leaves nothing to adapt.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels, build_sampler, curvature_bound
from drl_dist.common.program import entry_point, stop_on_signals
from drl_dist.common.validation import refuse_broken, whole_number
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import conditional_density, scaled_density
from drl_dist.energy.network import EnergyNetwork
from drl_dist.library.engine import averaged_network
from drl_dist.library.stored import load_model
from drl_dist.mcmc.kernel import KeyedChainNoise, column
from drl_dist.mcmc.mala import Mala
from drl_dist.training.chain import GradientEngine

ITERATIONS = 40
"""Of the power iteration."""
_HEAD = ("level", "largest curvature / bound: median", "90 % below", "largest", "accepted", "step sizes to 2 / root")


@dataclass(frozen=True)
class LevelCurvature:
    """Of one level, over the images."""

    level: int
    ratio: Tensor
    """(N,) largest curvature of the conditional density over the bound."""
    acceptance: float
    """Mean probability that one of the model's own steps is accepted."""
    step_fraction: float
    """Its step size over 2 / sqrt(median largest curvature), where chains become unstable."""


def curvatures(experiment: Experiment, network: EnergyNetwork, num_images: int, seed: int) -> list[LevelCurvature]:
    """All levels, from 0 on, at samples that the network draws itself.

    Args:
        network: with frozen weights.
        num_images: N.
    """
    ladder = build_ladder(experiment.diffusion)
    levels, noise = build_levels(experiment, ladder), PhiloxNoise(seed)
    bound = curvature_bound(ladder, levels.transition_scale, levels.recovery_precision)
    if network.curvature is not None:
        levels = levels.shortened(network.curvature)
    sampler = build_sampler(experiment, network.curvature)
    engine = GradientEngine(network, EngineConfig(compile="never"), is_frozen=True)
    ids, shape = torch.arange(num_images), network.image_shape
    stages = sampler.sample_levels(engine.raw_at, noise, ids, shape).flip(0)
    found: list[LevelCurvature] = []
    for t in range(levels.num_levels):
        level, here = torch.full_like(ids, t), levels.to(ids.device, torch.float32).at(torch.full_like(ids, t))
        y = stages[t] * column(here.transition_scale, stages[t])
        start = noise.normal(Purpose.PRIOR, ids, t, (1,), shape)[0]
        largest = largest_curvature(network, y, level, start) * here.energy_scale + here.recovery_precision
        density = conditional_density(
            scaled_density(engine.raw_at(level), here.energy_scale), stages[t + 1], here.recovery_precision
        )
        kernel = Mala(density, here.step_size)
        numbers = next(KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, ids, t, shape).steps(0, 1, kernel.num_uniforms))
        _, info = kernel(kernel.init(y), numbers)
        fraction = float(levels.step_size[t]) * float(largest.median().clamp(min=0)) ** 0.5 / 2
        mean_acceptance = float(info.acceptance_probability.mean())
        found.append(LevelCurvature(t, largest / float(bound[t]), mean_acceptance, fraction))
    return found


def largest_curvature(network: EnergyNetwork, y: Tensor, level: Tensor, start: Tensor) -> Tensor:
    """The eigenvalue of the largest size of minus the Hessian of raw, (B,), each image for itself.

    Args:
        network: raw = network(y, level).
        y: (B, C, H, W).
        level: (B,) int64.
        start: (B, C, H, W) where the power iteration begins.
    """
    leaf = y.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf, level).sum(), leaf, create_graph=True)
    direction, value = _normalised(start), torch.zeros(len(y))
    for _ in range(ITERATIONS):
        (product,) = torch.autograd.grad((gradient * direction).sum(), leaf, retain_graph=True)
        value = -(product * direction).flatten(1).sum(1)
        direction = _normalised(product)
    return value


def table(found: list[LevelCurvature]) -> str:
    """As Markdown."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for one in found:
        ratios = (one.ratio.median(), one.ratio.quantile(0.9), one.ratio.max())
        numbers = (*map(float, ratios), one.acceptance, one.step_fraction)
        lines.append((str(one.level), *(f"{number:.2f}" for number in numbers)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _normalised(images: Tensor) -> Tensor:
    return images / column(images.flatten(1).norm(dim=1), images)


def main(words: list[str]) -> int:
    """Measure and print; the exit status.

    Raises:
        UserError: there is no such model, or an option cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="benchmarks.curvature", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="URL of a checkpoint or of a run's folder")
    parser.add_argument("--num-images", type=whole_number, default=64, help="samples at which every level is measured")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the samples")
    given = parser.parse_args(words)
    refuse_broken(
        [
            ("--num-images", given.num_images, "at least 1", given.num_images >= 1),
            ("--seed", given.seed, "a number in [0, 2**63)", 0 <= given.seed < 2**63),
        ]
    )
    stop_on_signals()
    model = load_model(given.model, None)
    network = averaged_network(model.experiment, model.ema, torch.device("cpu")).requires_grad_(False)
    print(table(curvatures(model.experiment, network, given.num_images, given.seed)))
    return 0


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
