"""NUTS: trees of different sizes in one batch, against a plain recursive construction of the same trees."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import drl_dist.mcmc.nuts as nuts_module
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import Gaussian
from drl_dist.mcmc.kernel import KeyedChainNoise, StepNoise
from drl_dist.mcmc.leapfrog import DIVERGENCE, leapfrog, locate, total_energy
from drl_dist.mcmc.nuts import Nuts
from tests.mcmc.distributions import gaussian, invariance_scores, mixture, run


def plain_step(
    density: LogDensityAndGrad, y: Tensor, numbers: StepNoise, step_size: float, max_tree_depth: int
) -> tuple[Tensor, int]:
    """One step of one chain by the definition: whole lists of leaves, every aligned sub-tree checked in full.

    Returns:
        Where the chain goes, and the leapfrog steps that were needed.
    """
    uniform = numbers.uniform[0].tolist()
    start = locate(density, y)
    energy = total_energy(start, numbers.normal)
    tree = [(start, numbers.normal)]
    chosen, weight, total = y, 1.0, 0

    def turns(leaves: list) -> bool:
        way = sum(momentum for _, momentum in leaves) - 0.5 * (leaves[0][1] + leaves[-1][1])
        return any(float((way * leaf[1]).sum()) <= 0 for leaf in (leaves[0], leaves[-1]))

    for depth in range(max_tree_depth):
        forwards = uniform[depth] < 0.5
        point, momentum = tree[-1 if forwards else 0]
        leaves: list = []
        proposal, half_weight = y, 0.0
        for leaf in range(2**depth):
            point, momentum = leapfrog(
                density, point, momentum, torch.tensor([step_size if forwards else -step_size], dtype=torch.float64)
            )
            total += 1
            error = float(total_energy(point, momentum) - energy)
            if not error <= DIVERGENCE:
                return chosen, total
            leaves.append((point, momentum))
            half_weight += math.exp(-error)
            if uniform[2 * max_tree_depth + 2**depth - 1 + leaf] < math.exp(-error) / half_weight:
                proposal = point.y
            for size in (2**k for k in range(1, depth + 1)):
                if len(leaves) % size == 0 and turns(leaves[-size:]):
                    return chosen, total
        if uniform[max_tree_depth + depth] < half_weight / weight:
            chosen = proposal
        weight += half_weight
        tree = tree + leaves if forwards else leaves[::-1] + tree
        if turns(tree):
            break
    return chosen, total


@pytest.mark.parametrize("target", [gaussian, mixture])
def test_every_chain_of_a_batch_builds_the_tree_of_the_definition(target) -> None:  # noqa: ANN001
    exact, count, depth = target(0, 120), 120, 6
    step_sizes = torch.linspace(0.03, 0.9, count, dtype=torch.float64)
    dims = exact.draws.shape[1]
    noise = KeyedChainNoise(PhiloxNoise(9), Purpose.SAMPLE_CHAIN, torch.arange(count), 0, (dims,), torch.float64)
    kernel = Nuts(exact.density, step_sizes, depth)
    [numbers] = noise.steps(0, 1, kernel.num_uniforms)
    state, info = kernel(kernel.init(exact.draws), numbers)
    sizes: list[int] = []
    for i in range(count):
        own = StepNoise(numbers.normal[i : i + 1], numbers.uniform[i : i + 1])
        expected, total = plain_step(exact.density, exact.draws[i : i + 1], own, float(step_sizes[i]), depth)
        torch.testing.assert_close(state.y[i : i + 1], expected, rtol=0, atol=1e-9)
        assert int(info.num_leapfrog_steps[i]) == total
        sizes.append(total)
    # The comparison is worth something only over trees of many shapes, stopped at ends of halves and in the midst.
    assert len(set(sizes)) > 10
    assert {1, 3, 7, 15, 63} < set(sizes)


def test_without_checks_of_subtrees_the_target_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 10_000
    exact = gaussian(0, count, (1.0,))
    kernel = Nuts(exact.density, torch.full((count,), 0.4, dtype=torch.float64), 5)
    assert float(invariance_scores(exact, run(kernel, exact.draws, 0, 4)[0]).abs().max()) < 4.5
    monkeypatch.setattr(nuts_module, "_first_leaves_of_subtrees", lambda leaf: [])
    assert float(invariance_scores(exact, run(kernel, exact.draws, 0, 4)[0]).abs().max()) > 9


def test_trajectories_stop_at_their_turn() -> None:
    # On a Gaussian the exact dynamics is a circle: a trajectory that turns covers about half of the period 2 pi std.
    std, count, dims = 2.0, 300, 50
    density = Gaussian(torch.tensor(0.0, dtype=torch.float64), std).log_density_and_grad
    y = std * PhiloxNoise(0).normal(Purpose.BASE, torch.arange(count), 0, (0,), (dims,))[0].double()
    for step_size in (0.4, 0.1):
        kernel = Nuts(density, torch.full((count,), step_size, dtype=torch.float64), 8)
        _, [info], _ = run(kernel, y, 1, 1)
        way = float(info.num_leapfrog_steps.double().mean()) * step_size
        assert 0.5 * math.pi * std < way < 1.5 * math.pi * std
        assert int(info.num_leapfrog_steps.max()) < 2**8 - 1
        assert bool(info.is_accepted.all())


def test_a_tree_ends_at_its_greatest_depth() -> None:
    exact, count = gaussian(0, 40), 40
    kernel = Nuts(exact.density, torch.full((count,), 1e-3, dtype=torch.float64), 4)
    assert kernel.num_uniforms == 4 + 4 + 15
    _, [info], _ = run(kernel, exact.draws, 0, 1)
    assert info.num_leapfrog_steps.tolist() == [15] * count
    # Equal weights nearly: the new half is always preferred, so each chain ends in the last one.
    assert float(info.acceptance_probability.min()) > 0.999


def test_gradients_are_those_of_the_largest_tree() -> None:
    exact, calls = gaussian(0, 30), 0

    def counted(y: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return exact.density(y)

    step_sizes = torch.linspace(0.02, 0.5, 30, dtype=torch.float64)
    _, infos, _ = run(Nuts(counted, step_sizes, 6), exact.draws, 0, 5)
    assert calls == 1 + sum(int(info.num_leapfrog_steps.max()) for info in infos)
    assert any(len(set(info.num_leapfrog_steps.tolist())) > 4 for info in infos)
