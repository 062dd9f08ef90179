"""AUROC to the last tie, and the log-density f(y_0, 0)."""

from __future__ import annotations

import math

import pytest
import torch

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.config.tree import EngineConfig
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.library.log_density import log_densities
from drl_dist.likelihood.auroc import auroc
from drl_dist.training.chain import GradientEngine
from drl_dist.training.state import TrainState
from tests.helpers.steps import batch, tiny, waken


@pytest.mark.parametrize("seed", range(10))
def test_auroc_is_scikit_learns(seed: int) -> None:
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(seed)
    # Few distinct values, so that half of all pairs are ties.
    inside = torch.randint(0, 4, (83,), generator=generator).float() + 1
    outside = torch.randint(0, 4, (61,), generator=generator).float()
    for one, other in ((inside, outside), (torch.randn(83, generator=generator), torch.randn(61, generator=generator))):
        labels = [1] * len(one) + [0] * len(other)
        expected = roc_auc_score(labels, torch.cat([one, other]).numpy())
        assert auroc(one, other) == pytest.approx(expected, abs=1e-14)
        pairs = one[:, None] - other[None]
        assert auroc(one, other) == float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())


def test_auroc_of_known_values() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    assert auroc(values, values) == 0.5
    assert auroc(values + 3, values) == 1.0
    assert auroc(values, values + 3) == 0.0
    assert auroc(torch.tensor([2.0]), torch.tensor([1.0, 2.0, 2.0, 3.0])) == 0.5
    assert auroc(torch.tensor([2.0]), torch.tensor([1.0, 1.0, 2.0, 3.0])) == 0.625
    # Rounded to float32 these two would be equal.
    assert auroc(torch.tensor([1.0 + 1e-12], dtype=torch.float64), torch.tensor([1.0])) == 1.0
    assert auroc(torch.tensor([math.inf]), torch.tensor([-math.inf])) == 1.0


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0]])
def test_auroc_refuses_what_has_no_order(bad: list[float]) -> None:
    for pair in ((torch.tensor(bad), torch.ones(2)), (torch.ones(2), torch.tensor(bad))):
        with pytest.raises(ValueError, match="no NaN"):
            auroc(*pair)


def test_log_densities_are_those_of_the_training_step() -> None:
    experiment = tiny()
    state = TrainState.create(experiment)
    waken(state)
    given = batch(5)
    noise = PhiloxNoise(3)
    found = log_densities(state.network, experiment, noise, given.images, given.positions)

    ladder = build_ladder(experiment.diffusion)
    first, scale = ladder.cumulative_std[0], ladder.cumulative_scale[0]
    drawn = noise.normal(Purpose.BASE, given.positions, 0, (0,), (1, 8, 8))[0]
    y = ladder.scale[1] * (scale * to_unit_range(given.images).double() + first * drawn)
    step_size = build_levels(experiment, ladder).step_size[0]
    engine = GradientEngine(state.network, EngineConfig(compile="never"))
    raw, _ = engine.raw_at(torch.zeros(12, dtype=torch.int64))(y.float())
    expected = raw.double() / step_size**2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    assert found.dtype == torch.float64
    assert float(found.std()) > 100, "equal values would make the comparison easy"
    other = log_densities(state.network, experiment, PhiloxNoise(4), given.images, given.positions)
    assert not torch.equal(found, other)
