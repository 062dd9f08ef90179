"""The benchmark of curvature: known answers, and a full Hessian."""

from __future__ import annotations

import pytest
import torch

from benchmarks.curvature import curvatures, largest_curvature, table
from drl_dist.build import build_ladder, build_levels, build_network
from drl_dist.training.state import TrainState
from tests.helpers.steps import tiny_unet, waken


def test_white_gaussian_data_have_the_curvature_of_their_variance() -> None:
    # What a U-Net is before training.
    experiment = tiny_unet(data_std=0.4)
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    noise, signal = (part(levels.transition_scale) for part in (ladder.noise_in_y, ladder.signal_in_y))
    expected = 1 / (noise**2 + (0.4 * signal) ** 2) + levels.recovery_precision
    bound = levels.recovery_precision + noise**-2
    found = curvatures(experiment, build_network(experiment).requires_grad_(False), 2, 0)
    assert [one.level for one in found] == list(range(levels.num_levels))
    for t, one in enumerate(found):
        assert one.ratio.tolist() == pytest.approx([float(expected[t] / bound[t])] * 2, rel=1e-4)
        assert one.step_fraction == pytest.approx(float(levels.step_size[t] * expected[t].sqrt() / 2), rel=1e-4)
        assert 0 < one.acceptance <= 1
    assert table(found).count("\n") == levels.num_levels + 1


def test_it_is_the_largest_eigenvalue_of_the_hessian() -> None:
    state = TrainState.create(tiny_unet(), dtype=torch.float64)
    waken(state)
    network, level = state.network.requires_grad_(False), torch.tensor([0, 3])
    generator = torch.Generator().manual_seed(0)
    y, start = (torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    got = largest_curvature(network, y, level, start)
    for image in range(2):
        at = level[image : image + 1]
        hessian = torch.autograd.functional.hessian(lambda x, at=at: network(x, at).sum(), y[image : image + 1])
        eigenvalues = torch.linalg.eigvalsh(-hessian.reshape(64, 64))
        largest = eigenvalues[eigenvalues.abs().argmax()]
        # Neighbouring eigenvalues are close, so the iteration comes near, from inside.
        assert float(got[image]) == pytest.approx(float(largest), rel=0.05)
        assert abs(float(got[image])) <= abs(float(largest)) * (1 + 1e-9)
