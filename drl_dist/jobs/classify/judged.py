"""Constants and scores: what energies of labels say of images, and how right they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from drl_dist.likelihood.bayes import Constants, fit_constants
from drl_dist.likelihood.calibration import Answers, confusion, reliability
from drl_dist.likelihood.questions import Questions

EQUAL, BAYES, CALIBRATED = "equal", "fitted", "calibrated"
"""Constants that are all alike; offsets that are fitted; offsets and an inverse temperature that are."""


def all_constants(energies: Tensor, answers: Tensor | None) -> dict[str, Constants]:
    """The constants, by name: equal ones, and where there are labelled images those that are fitted to them.

    Args:
        energies: (N, Q, K).
        answers: (N, Q), None where nothing is to be fitted.
    """
    found = {EQUAL: Constants.equal(energies.shape[1], energies.shape[2])}
    if answers is not None:
        found[BAYES] = fit_constants(energies, answers, with_temperature=False)
        found[CALIBRATED] = fit_constants(energies, answers, with_temperature=True)
    return found


def assumption(constants: str, num_fitted: int, url: str) -> str:
    """What is taken for log Z, in one sentence.

    Args:
        constants: a name of these.
        num_fitted: images that they were fitted to.
        url: of these images.
    """
    if constants == EQUAL:
        return (
            "log Z_t(c) was taken to be the same for all labels, and all labels to be equally frequent: training "
            "determines neither, so a label whose energies are too high is given too often"
        )
    return (
        f"log p(c) - log Z_t(c), one number for each label, was fitted by maximum likelihood to {num_fitted} labelled "
        f"images of {url}, since training determines no log Z_t(c): other frequencies of labels need other numbers"
    )


def by_label(questions: Questions, values: Tensor) -> dict[str, Any]:
    """Numbers (Q, K) by the name of the class, or by that of the attribute: that of yes less that of no."""
    found = values[0] if questions.is_class else values[:, 1] - values[:, 0]
    return dict(zip(questions.asked_names, found.tolist(), strict=True))


def log_z(questions: Questions, constants: Constants, answers: Tensor) -> dict[str, Any]:
    """log Z_t(c) that fitted offsets imply, up to a constant, by `by_label`.

    Args:
        answers: (N, Q) of the images that the offsets were fitted to, whose frequencies are the prior.
    """
    counts = torch.stack([torch.bincount(column[column >= 0], minlength=questions.shape[1]) for column in answers.T])
    values = counts.double().log() - constants.offset
    return by_label(questions, values - values.mean(1, keepdim=True))


def details(questions: Questions, answers: Answers) -> dict[str, Any]:
    """What scores of all labels together do not show: each label by itself, wrong answers, and reliability."""
    if not answers.num_known:
        return {"per_label": None, "mean_accuracy": None, "confusion": None, "reliability": None}
    predicted = answers.log_posterior.argmax(2)
    per_label: dict[str, Any] = {}
    if questions.is_class:
        for number, name in enumerate(questions.names):
            per_label[name] = _share(predicted[:, 0] == number, answers.answers[:, 0] == number)
    else:
        for question, name in enumerate(questions.asked_names):
            told = answers.answers[:, question]
            frequent = max((told == 0).sum(), (told == 1).sum()) / max(1, int((told >= 0).sum()))
            per_label[name] = _share(predicted[:, question] == told, told >= 0) | {"most_frequent": float(frequent)}
    accuracies = [row["accuracy"] for row in per_label.values() if row["images"]]
    log_posterior, known = answers.known()
    shown = reliability(log_posterior.exp(), known)
    table = None
    if questions.is_class:
        table = confusion(log_posterior.argmax(1), known, len(questions.names)).tolist()
    return {
        "per_label": per_label,
        "mean_accuracy": sum(accuracies) / len(accuracies),
        "confusion": table,
        "reliability": {"counts": shown.counts, "confidence": shown.confidence, "accuracy": shown.accuracy},
    }


def _share(is_right: Tensor, counts: Tensor) -> dict[str, Any]:
    images = int(counts.sum())
    return {"images": images, "accuracy": float((is_right & counts).sum()) / images if images else math.nan}


def scores_by_name(judged: Mapping[str, Answers]) -> dict[str, Any]:
    """The scores under each set of constants; None where no label is known."""
    return {name: None if (found := row.scores()) is None else found.as_json() for name, row in judged.items()}
