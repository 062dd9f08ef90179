"""Densities with known moments, exact draws from them, and chains on them; all float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import Gaussian, GaussianMixture
from drl_dist.mcmc.kernel import ChainNoise, Info, Kernel, KernelAt, KeyedChainNoise, StepNoise, run_chain


def stretched(density: LogDensityAndGrad, scale: Tensor) -> LogDensityAndGrad:
    """The density of scale * y for y of the given one: coordinates of different scales, (D,)."""

    def stretched_density(y: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = density(y / scale)
        return value, gradient / scale

    return stretched_density


@dataclass(frozen=True)
class Target:
    """A density, exact draws from it, and how its coordinates are made alike."""

    density: LogDensityAndGrad
    draws: Tensor
    """(count, D)"""
    scale: Tensor
    """(D,)"""
    statistics_mean: Tensor
    """Exact expectation of `statistics`."""

    def statistics(self, y: Tensor) -> Tensor:
        """Each coordinate, its square, and products of neighbours, of chains at y: (B, 3 D - 1)."""
        z = y / self.scale
        return torch.cat([z, z.square(), z[:, 1:] * z[:, :-1]], dim=1)


def _normals(seed: int, count: int, dims: int) -> Tensor:
    """Draws that no chain of the tests shares."""
    return PhiloxNoise(seed).normal(Purpose.BASE, torch.arange(count), 0, (0,), (dims,))[0].double()


def gaussian(seed: int, count: int, scale: tuple[float, ...] = (1.0, 0.3, 2.0)) -> Target:
    """N(0.5, 0.8**2), every coordinate stretched by a factor of its own."""
    stretch, base = torch.tensor(scale, dtype=torch.float64), Gaussian(torch.tensor(0.5, dtype=torch.float64), 0.8)
    dims = len(scale)
    return Target(
        density=stretched(base.log_density_and_grad, stretch),
        draws=stretch * (0.5 + 0.8 * _normals(seed, count, dims)),
        scale=stretch,
        statistics_mean=torch.tensor([0.5] * dims + [0.25 + 0.64] * dims + [0.25] * (dims - 1), dtype=torch.float64),
    )


def mixture(seed: int, count: int) -> Target:
    """Three overlapping modes in the plane, one axis four times as long as the other."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.5, -1.5]], dtype=torch.float64)
    stretch, std = torch.tensor([0.5, 2.0], dtype=torch.float64), 0.7
    base = GaussianMixture(means, std)
    which = (PhiloxNoise(seed).uniform(Purpose.LEVEL, torch.arange(count), 0, (0,), 1)[0, :, 0] * 3).long()
    second = means.square().mean(0) + std**2
    product = (means[:, 0] * means[:, 1]).mean()[None]
    return Target(
        density=stretched(base.log_density_and_grad, stretch),
        draws=stretch * (means[which] + std * _normals(seed, count, 2)),
        scale=stretch,
        statistics_mean=torch.cat([means.mean(0), second, product]),
    )


@dataclass(frozen=True)
class LouderNoise:
    """Normals five per cent too large: a mutation."""

    noise: ChainNoise

    def steps(self, start: int, stop: int, num_uniforms: int) -> Iterator[StepNoise]:
        for numbers in self.noise.steps(start, stop, num_uniforms):
            yield StepNoise(1.05 * numbers.normal, numbers.uniform)


def run(
    kernel: Kernel,
    y: Tensor,
    seed: int,
    num_steps: int,
    *,
    ids: Tensor | None = None,
    is_louder: bool = False,
) -> tuple[Tensor, list[Info], Tensor]:
    """Where chains end, what each step said, and where they were after each step, (num_steps, B, D)."""
    infos: list[Info] = []
    places: list[Tensor] = []

    def observe(chain_step: int, state: object, info: Info | None) -> None:
        if info is not None:
            infos.append(info)
        places.append(state.y)  # pyright: ignore[reportAttributeAccessIssue]

    ids = torch.arange(len(y)) if ids is None else ids
    numbers = KeyedChainNoise(PhiloxNoise(seed), Purpose.SAMPLE_CHAIN, ids, 0, tuple(y.shape[1:]), torch.float64)
    noise = LouderNoise(numbers) if is_louder else numbers
    end = run_chain(kernel, y, noise, num_steps, observe=observe).y
    return end, infos, torch.stack(places)


def make(kernel_at: KernelAt, target: Target, step_size: float, count: int) -> Kernel:
    return kernel_at(target.density, torch.full((count,), step_size, dtype=torch.float64))


def invariance_scores(target: Target, ends: Tensor) -> Tensor:
    """Standard errors between independent ends of chains that began with exact draws, and the target."""
    found = target.statistics(ends)
    return (found.mean(0) - target.statistics_mean) / (found.std(0) / math.sqrt(len(ends)))


def ergodic_scores(target: Target, places: Tensor) -> Tensor:
    """Standard errors between averages along chains and the target; an average's error comes from chains, which are
    independent however slowly each of them moves."""
    steps, count, dims = places.shape
    averages = target.statistics(places.reshape(-1, dims)).reshape(steps, count, -1).mean(0)
    return (averages.mean(0) - target.statistics_mean) / (averages.std(0) / math.sqrt(count))


def expected_rate(step_size: float, dims: int) -> float:
    """Acceptance rate of two leapfrog steps on N(0, 1) in `dims` dimensions, by the matrix that they are there."""
    half = torch.tensor([[1.0, 0.0], [-step_size / 2, 1.0]], dtype=torch.float64)
    drift = torch.tensor([[1.0, step_size], [0.0, 1.0]], dtype=torch.float64)
    flow = torch.linalg.matrix_power(half @ drift @ half, 2)
    generator = torch.Generator().manual_seed(0)
    begin = torch.randn(2, 20_000, dims, generator=generator, dtype=torch.float64)
    end = torch.einsum("ij,jbd->ibd", flow, begin)
    error = 0.5 * (end.square().sum((0, 2)) - begin.square().sum((0, 2)))
    return float((-error).clamp(max=0).exp().mean())
