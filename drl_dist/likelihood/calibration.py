"""How good probabilities of labels are: accuracy, calibration and proper scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Images by the probability of the label that they were given: equal bins of [0, 1]."""

    counts: list[int]
    """Images in each bin."""
    confidence: list[float]
    """Mean probability of the label given, 0 in an empty bin."""
    accuracy: list[float]
    """Share of labels given that are right, 0 in an empty bin."""

    @property
    def expected_error(self) -> float:
        """ECE: |confidence - accuracy|, averaged over all images (Naeini, Cooper, Hauskrecht, AAAI 2015)."""
        total = sum(self.counts)
        gaps = zip(self.counts, self.confidence, self.accuracy, strict=True)
        return sum(count * abs(confidence - accuracy) for count, confidence, accuracy in gaps) / total


def reliability(probabilities: Tensor, labels: Tensor, bins: int = NUM_BINS) -> Reliability:
    """The reliability of probabilities (N, K) of labels (N,); N is at least 1."""
    top, given = probabilities.double().max(1)
    is_right = (given == labels).double()
    # A probability of 1 belongs to the last bin.
    places = (top * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(places, minlength=bins)
    shares = [
        torch.zeros(bins, dtype=torch.float64).index_add_(0, places, values) / counts.clamp(min=1)
        for values in (top, is_right)
    ]
    return Reliability(counts.tolist(), shares[0].tolist(), shares[1].tolist())


@dataclass(frozen=True)
class LabelScores:
    """Scores of probabilities of labels."""

    accuracy: float
    """Share of images whose most probable label is right."""
    ece: float
    """`Reliability.expected_error`."""
    brier: float
    """Squared distance of the probabilities from 1 for the right label and 0 for the others; 0 to 2."""
    log_loss: float
    """Mean of -log p(right label), in nats."""

    def as_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


def label_scores(log_probabilities: Tensor, labels: Tensor) -> LabelScores:
    """Scores of log-probabilities (N, K) of labels (N,); N is at least 1."""
    probabilities = log_probabilities.double().exp()
    right = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return LabelScores(
        accuracy=float((probabilities.argmax(1) == labels).double().mean()),
        ece=reliability(probabilities, labels).expected_error,
        brier=float((probabilities - right).square().sum(1).mean()),
        log_loss=float(-log_probabilities.double().gather(1, labels[:, None]).mean()),
    )


@dataclass(frozen=True)
class Answers:
    """Probabilities of all answers to Q questions about N images under one set of constants."""

    log_posterior: Tensor
    """(N, Q, K)."""
    answers: Tensor
    """(N, Q), -1 where not known."""

    @property
    def num_known(self) -> int:
        """Answers that can be judged."""
        return int((self.answers >= 0).sum())

    def known(self) -> tuple[Tensor, Tensor]:
        """(M, K) and (M,) of the answers that are known, all questions together."""
        is_known = self.answers >= 0
        return self.log_posterior[is_known], self.answers[is_known]

    def scores(self) -> LabelScores | None:
        """None where no answer is known."""
        return label_scores(*self.known()) if self.num_known else None


def confusion(predicted: Tensor, labels: Tensor, count: int) -> Tensor:
    """(count, count) int64: how many images of each label, a row, were given each label, a column."""
    return torch.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)


def most_telling(scores: Sequence[tuple[int, LabelScores | None]]) -> int:
    """The most accurate one of several levels, of equal ones that of the smaller log loss.

    Args:
        scores: of each level on labelled images, None where it was not judged.
    """

    def worth(row: tuple[int, LabelScores | None]) -> tuple[float, float]:
        _, found = row
        return (0.0, -math.inf) if found is None else (found.accuracy, -found.log_loss)

    return max(scores, key=worth)[0]
