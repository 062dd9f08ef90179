"""Bayes' rule over energies of labels: on Gaussians, whose normalising constants are known, and its mutations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.config.presets import preset
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.energy.network import EnergyNetwork
from drl_dist.likelihood.bayes import (
    Constants,
    attribute_conditions,
    class_conditions,
    fit_constants,
    label_energies,
    unseen,
)
from drl_dist.likelihood.calibration import label_scores

EXPERIMENT = preset("digits", "unet")
LADDER = build_ladder(EXPERIMENT.diffusion)
LEVELS = build_levels(EXPERIMENT, LADDER)
T, PIXELS, COUNT = 5, 4, 6000
MEANS = torch.tensor([-0.3, 0.0, 0.3], dtype=torch.float64)
STDS = torch.tensor([0.2, 0.5, 1.1], dtype=torch.float64)
PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def spread_of_y() -> Tensor:
    """Standard deviation of each pixel of y_t, by class."""
    signal, noise = (LADDER.signal_in_y(LEVELS.transition_scale)[T], LADDER.noise_in_y(LEVELS.transition_scale)[T])
    return (signal.square() * STDS.square() + noise.square()).sqrt()


class GaussianEnergies(EnergyNetwork):
    """-|y - mean_c|**2 / (2 std_c**2): the log-densities of three classes, without their different constants."""

    image_shape = (1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        signal = float(LADDER.signal_in_y(LEVELS.transition_scale)[T])
        self.means, self.stds = signal * MEANS, spread_of_y()

    def effective_weights(self, dtype: Any = None) -> Any:
        return None

    def prepare(self, level: Tensor, dtype: Any = None, weights: Any = None, condition: Tensor | None = None) -> Any:
        assert condition is not None and bool((level == T).all())
        return condition.double() @ self.means, condition.double() @ self.stds

    @staticmethod
    def evaluate(prepared: Any, y: Tensor) -> Tensor:
        means, stds = prepared
        return -(y - means[:, None, None, None]).square().sum((1, 2, 3)) / (2 * stds.square())


def world(seed: int) -> tuple[Tensor, Tensor]:
    """Images (COUNT, 1, 2, 2) of three classes, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(PRIOR, COUNT, replacement=True, generator=generator)
    normal = torch.randn(COUNT, PIXELS, generator=generator, dtype=torch.float64)
    return (MEANS[labels, None] + STDS[labels, None] * normal).reshape(-1, 1, 2, 2), labels


def energies_of(x: Tensor, seed: int = 0, num_draws: int = 1, conditions: Tensor | None = None) -> Tensor:
    """(N, C)."""
    conditions = torch.eye(3) if conditions is None else conditions
    ids = torch.arange(len(x))
    return label_energies(
        GaussianEnergies(), LADDER, LEVELS, PhiloxNoise(seed), x, ids, T, conditions, num_draws=num_draws
    )


def true_offset() -> Tensor:
    """log p(c) - log Z_c up to a constant, (3,)."""
    offset = PRIOR.log() - PIXELS * spread_of_y().log()
    return offset - offset.mean()


@pytest.fixture(scope="module")
def fitted() -> tuple[Tensor, Tensor, Constants]:
    """Energies (N, 1, 3) and classes of images, and the constants fitted to others."""
    x, labels = world(1)
    constants = fit_constants(energies_of(x)[:, None], labels[:, None], with_temperature=False)
    x, labels = world(2)
    return energies_of(x, seed=2)[:, None], labels, constants


def test_fitted_constants_are_those_of_the_densities(fitted: tuple[Tensor, Tensor, Constants]) -> None:
    _, _, constants = fitted
    assert float(true_offset().max() - true_offset().min()) > 2, "equal constants would make it easy"
    torch.testing.assert_close(constants.offset[0], true_offset(), atol=0.12, rtol=0)
    assert constants.beta.tolist() == [1.0]


def test_the_posterior_is_bayes_rule_and_that_of_equal_constants_is_not(
    fitted: tuple[Tensor, Tensor, Constants],
) -> None:
    energies, labels, constants = fitted
    exact = torch.log_softmax(energies[:, 0] + true_offset(), 1)
    found = constants.log_posterior(energies)[:, 0]
    assert float((found.exp() - exact.exp()).abs().mean()) < 0.01
    equal = Constants.equal(1, 3).log_posterior(energies)[:, 0]
    assert float((equal.exp() - exact.exp()).abs().mean()) > 0.1
    best, worse = label_scores(found, labels), label_scores(equal, labels)
    assert best.accuracy > worse.accuracy + 0.05 and best.ece < 0.02 and worse.ece > 0.1
    assert best.log_loss == pytest.approx(label_scores(exact, labels).log_loss, abs=0.003)
    # The density of all images together, up to a constant.
    evidence = constants.log_evidence(energies)[:, 0] - torch.logsumexp(energies[:, 0] + true_offset(), 1)
    assert float(evidence.std()) < 0.05


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_the_temperature_is_that_of_energies_too_sharp(sharpness: float) -> None:
    x, labels = world(1)
    constants = fit_constants(sharpness * energies_of(x)[:, None], labels[:, None], with_temperature=True)
    assert float(constants.beta) == pytest.approx(1 / sharpness, rel=0.06)
    torch.testing.assert_close(constants.offset[0], true_offset(), atol=0.2, rtol=0)


def test_the_fit_is_the_maximum() -> None:
    generator = torch.Generator().manual_seed(0)
    energies = 30 * torch.randn(200, 2, 4, generator=generator, dtype=torch.float64)
    answers = torch.randint(-1, 4, (200, 2), generator=generator)
    constants = fit_constants(energies, answers, with_temperature=True)
    for question in range(2):
        known = answers[:, question] >= 0
        offset, beta = constants.offset[question].clone().requires_grad_(), constants.beta[question].clone()
        beta.requires_grad_()
        logits = beta * energies[known, question] + offset
        loss = torch.nn.functional.cross_entropy(logits, answers[known, question], reduction="sum") + beta - beta.log()
        for gradient in torch.autograd.grad(loss, [offset, beta]):
            assert float(gradient.abs().max()) < 1e-3


def test_images_that_are_all_told_rightly_leave_beta_finite() -> None:
    energies = 5 * torch.eye(3, dtype=torch.float64).repeat(20, 1)[:, None]
    answers = torch.arange(60)[:, None] % 3
    beta = float(fit_constants(energies, answers, with_temperature=True).beta)
    assert 1 < beta < 5


def test_an_answer_of_no_image_is_refused() -> None:
    answers = torch.tensor([[0, 1], [2, -1], [0, 0]])
    assert unseen(answers, 3) == [(0, 1), (1, 2)]
    with pytest.raises(ValueError, match="no image has answer 1 to question 0"):
        fit_constants(torch.zeros(3, 2, 3, dtype=torch.float64), answers, with_temperature=False)


def test_energies_are_those_of_keyed_noise_and_the_mean_over_draws() -> None:
    x, _ = world(3)
    x = x[:7]
    found = energies_of(x, seed=5, num_draws=3)
    draws = PhiloxNoise(5).normal(Purpose.INFER_LABEL, torch.arange(7), T, (0, 1, 2), (1, 2, 2)).double()
    y = LEVELS.transition_scale[T] * (LADDER.cumulative_scale[T] * x + LADDER.cumulative_std[T] * draws)
    for place in range(3):
        mean = LADDER.signal_in_y(LEVELS.transition_scale)[T] * MEANS[place]
        expected = -(y - mean).square().sum((2, 3, 4)) / (2 * spread_of_y()[place] ** 2)
        expected = expected.mean(0) * LEVELS.energy_scale[T]
        torch.testing.assert_close(found[:, place], expected, rtol=1e-6, atol=1e-9)
    # The noise of an image is its own, whatever is computed beside it.
    network, ids = GaussianEnergies(), torch.arange(3, 7)
    part = label_energies(network, LADDER, LEVELS, PhiloxNoise(5), x[3:], ids, T, torch.eye(3), num_draws=3)
    torch.testing.assert_close(part, found[3:])


def test_labels_may_differ_between_images() -> None:
    x, _ = world(3)
    same = energies_of(x[:4], num_draws=3)
    swapped = torch.eye(3)[:2, None].repeat(1, 4, 1)
    swapped[:, 2:] = swapped[:, 2:].flip(0)
    found = energies_of(x[:4], num_draws=3, conditions=swapped)
    assert torch.equal(found[:2], same[:2, :2]) and torch.equal(found[2:], same[2:, :2].flip(1))


def test_conditions_of_classes_and_attributes() -> None:
    assert class_conditions(2).tolist() == [[1, 0], [0, 1], [0, 0]]
    found = attribute_conditions(torch.tensor([[0, 1, 0], [0, -1, 0]]), [0, 2])
    assert found.tolist() == [
        [[-1, 1, 0], [-1, -1, 0]],
        [[1, 1, 0], [1, -1, 0]],
        [[0, 1, -1], [0, -1, -1]],
        [[0, 1, 1], [0, -1, 1]],
        [[0, 0, 0], [0, 0, 0]],
    ]
    assert math.prod(found.shape) == 30
