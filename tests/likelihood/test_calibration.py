"""Calibration and scores of probabilities, where they are known in closed form."""

from __future__ import annotations

import pytest
import torch

from drl_dist.likelihood.calibration import confusion, label_scores, reliability


def two_labels(top: torch.Tensor) -> torch.Tensor:
    return torch.stack([top, 1 - top], 1).double()


def test_a_calibrated_toy_has_no_error() -> None:
    # Of every hundred images at 0.6, 0.75 and 0.95, exactly so many are right.
    top = torch.tensor([0.6, 0.75, 0.95], dtype=torch.float64).repeat_interleave(100)
    labels = torch.cat([(torch.arange(100) >= round(100 * share)).long() for share in (0.6, 0.75, 0.95)])
    assert reliability(two_labels(top), labels).expected_error == pytest.approx(0, abs=1e-12)
    # And drawn at random it is as small as chance allows.
    generator = torch.Generator().manual_seed(0)
    top = 0.5 + 0.5 * torch.rand(200_000, generator=generator, dtype=torch.float64)
    labels = (torch.rand(200_000, generator=generator) >= top).long()
    assert reliability(two_labels(top), labels).expected_error < 0.005


@pytest.mark.parametrize(("said", "right"), [(0.99, 80), (1.0, 50), (0.6, 90)])
def test_the_error_and_the_scores_of_a_constant_probability(said: float, right: int) -> None:
    probabilities = two_labels(torch.full((100,), said, dtype=torch.float64))
    labels = (torch.arange(100) >= right).long()
    assert reliability(probabilities, labels).expected_error == pytest.approx(abs(said - right / 100), abs=1e-12)
    scores = label_scores(probabilities.log(), labels)
    share = right / 100
    assert scores.accuracy == pytest.approx(share)
    assert scores.brier == pytest.approx(2 * (share * (1 - said) ** 2 + (1 - share) * said**2))
    if said < 1:
        expected = -(share * torch.tensor(said).log() + (1 - share) * torch.tensor(1 - said).log())
        assert scores.log_loss == pytest.approx(float(expected), rel=1e-5)


def test_bins_hold_what_belongs_to_them() -> None:
    found = reliability(two_labels(torch.tensor([0.51, 0.99, 1.0])), torch.tensor([0, 0, 1]), bins=4)
    assert found.counts == [0, 0, 1, 2]
    assert found.confidence == pytest.approx([0, 0, 0.51, 0.995], abs=1e-6) and found.accuracy == [0, 0, 1, 0.5]


def test_rows_of_the_confusion_matrix_are_the_labels() -> None:
    table = confusion(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 0, 2]), 3)
    assert table.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
