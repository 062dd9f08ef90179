"""Scores are the library's log-densities, and gradients are their derivatives."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

import drl_dist
from drl_dist.common.errors import UserError
from drl_dist.serving.scoring import MAX_LEVELS, Scorer
from drl_dist.training.state import TrainState
from tests.helpers.labelled import write_model
from tests.helpers.steps import tiny_unet
from tests.support import write_tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:the energies were trained")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> drl_dist.Model:
    torch.set_num_threads(1)
    return drl_dist.load(write_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "c", width=4, num_chain_steps=2))


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1


def test_scores_are_those_of_the_library_at_every_level(model: drl_dist.Model) -> None:
    image = (picture() * 255).to(torch.uint8)
    scores = Scorer(model).scores(image, seed=2)
    assert [score.level for score in scores] == list(range(model.num_levels))
    for score in scores:
        expected = float(model.log_density(image[None], level=score.level, seed=2))
        assert score.log_density == pytest.approx(expected, rel=1e-4, abs=1e-4)
    noise = [score.noise_std for score in scores]
    assert noise == sorted(noise) and noise[0] == pytest.approx(127.5 * 0.01, rel=1e-2)
    images = (torch.stack([picture(seed) for seed in range(70)]) * 255).to(torch.uint8)
    table = Scorer(model).log_densities(images, seed=1)
    assert table.shape == (model.num_levels, 70)
    torch.testing.assert_close(table[3], model.log_density(images, level=3, seed=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [2, 3, 5])
def test_the_gradient_is_the_derivative_per_grey_level(model: drl_dist.Model, level: int) -> None:
    scorer, image = Scorer(model), (picture() * 255).to(torch.uint8)
    score = scorer.scores(image, seed=1)[level]
    step = 2
    for place in ((0, 2, 3), (0, 6, 1)):
        up, down = image.clone(), image.clone()
        up[place] += step
        down[place] -= step
        above, below = (scorer.scores(other, seed=1)[level].log_density for other in (up, down))
        slope = (above - below) / (2 * step)
        assert float(score.gradient[place]) == pytest.approx(
            slope, rel=0.1, abs=2e-3 * float(score.gradient.abs().max())
        )


def test_a_label_is_heard_and_others_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("labelled") / "c"
    write_model(folder, "class")
    labelled = drl_dist.load(folder)
    scorer, image = Scorer(labelled), (picture() * 255).to(torch.uint8)
    without, first, second = (
        [score.log_density for score in scorer.scores(image, label=label)]
        for label in (None, *labelled.label_names[:2])
    )
    assert len({without[0], first[0], second[0]}) == 3
    with pytest.raises(UserError, match="nobody"):
        scorer.scores(image, label="nobody")


def test_many_levels_are_spread_evenly(model: drl_dist.Model) -> None:
    experiment = tiny_unet()
    experiment = dataclasses.replace(experiment, diffusion=dataclasses.replace(experiment.diffusion, num_levels=100))
    levels = Scorer(drl_dist.Model.of_state(experiment, TrainState.create(experiment))).levels
    assert len(levels) == MAX_LEVELS and levels[0] == 0 and levels[-1] == 99
    gaps = {after - before for before, after in itertools.pairwise(levels)}
    assert gaps <= {6, 7}
