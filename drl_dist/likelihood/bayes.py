"""Labels of images by Bayes' rule over the energies f(y, t, c) of one noise level.

    log p(c | y_t) = log p(c) + f(y_t, t, c) - log Z_t(c) + a constant of y_t

Training compares energies of the same label alone, so nothing in it determines the constants log Z_t(c): a network may
add any number to the energy of a label. They are assumed to be equal, or fitted, together with the prior, as one offset
for each label. A density has no use of a temperature; one that is fitted all the same says how far the energies are
from those of a density, and calibrates what is inferred from them.

A label is the answer to a question. With classes there is one question, with as many answers as there are classes; with
attributes each is a question of its own, whose answers are no (0) and yes (1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from drl_dist.common.amounts import evenly_spread
from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.diffusion.recovery import Levels
from drl_dist.energy.network import EnergyNetwork

UNKNOWN_ANSWER = -1
_MAX_ITERATIONS = 2000
_MAX_LEVELS_TRIED = 20


@dataclass(frozen=True)
class Constants:
    """What is added to the energies of Q questions with K answers each, and what they are multiplied by."""

    offset: Tensor
    """(Q, K) float64, log p(c) - log Z_t(c), of mean 0 over the answers: only differences matter."""
    beta: Tensor
    """(Q,) float64, the inverse temperature; 1 is Bayes' rule."""

    @classmethod
    def equal(cls, questions: int, answers: int) -> Constants:
        """Those of labels that are all alike: equally frequent, and with one and the same Z."""
        return cls(torch.zeros(questions, answers, dtype=torch.float64), torch.ones(questions, dtype=torch.float64))

    def log_posterior(self, energies: Tensor) -> Tensor:
        """log p(c | y), (N, Q, K), of energies (N, Q, K)."""
        return torch.log_softmax(self.beta[:, None] * energies + self.offset, dim=2)

    def log_evidence(self, energies: Tensor) -> Tensor:
        """log sum_c exp(f(y, c) + offset_c), (N, Q): with the true offsets, and beta 1, log p(y) up to a constant."""
        return torch.logsumexp(self.beta[:, None] * energies + self.offset, dim=2)


def label_energies(
    network: EnergyNetwork,
    ladder: NoiseLadder,
    levels: Levels,
    noise: Noise,
    x: Tensor,
    sample_ids: Tensor,
    t: int,
    conditions: Tensor,
    *,
    num_draws: int = 1,
) -> Tensor:
    """f(y_t, t, c) of images under several labels, in nats, float64 (B, C) on the CPU: the mean over draws of y_t.

    All labels see the same draws, so what noise adds to every energy alike falls out of their differences. Energies are
    averaged, not probabilities: the posterior is then that of one matrix, linear in the constants, whose fit stays
    convex whatever the number of draws, and of one draw it is Bayes' rule itself.

    Args:
        network: with labels, in evaluation mode, on the device of the images.
        ladder, levels: of the network's experiment.
        noise: source of the noise in y_t, keyed by image, level and draw.
        x: (B, C, H, W) in [-1, 1].
        sample_ids: (B,) int64.
        t: the noise level, from 0.
        conditions: (C, size) labels as the network takes them, for all images; or (C, B, size).
        num_draws: of y_t.
    """
    draws = noise.normal(Purpose.INFER_LABEL, sample_ids, t, range(num_draws), x.shape[1:]).to(x.dtype)
    scale = float(levels.transition_scale[t])
    y = scale * (float(ladder.cumulative_scale[t]) * x + float(ladder.cumulative_std[t]) * draws)
    count = len(x)
    if conditions.dim() == 2:
        conditions = conditions[:, None].expand(-1, count, -1)
    level = torch.full((count,), t, device=x.device)
    found: list[Tensor] = []
    with torch.no_grad():
        weights = network.effective_weights()
        for condition in conditions.to(x.device):
            prepared = network.prepare_given(level, None, weights, condition)
            # Draw by draw, so that no more images are held at once than were given.
            found.append(torch.stack([network.evaluate(prepared, one).double() for one in y]).mean(0))
    return torch.stack(found, 1).cpu() * float(levels.energy_scale[t])


def class_conditions(size: int) -> Tensor:
    """The labels of all classes, and none at the end: float32 (size + 1, size)."""
    return torch.eye(size + 1)[:, :size].contiguous()


def attribute_conditions(known: Tensor, asked: list[int]) -> Tensor:
    """For each attribute that is asked for, its absence and its presence beside what is known; no label at the end.

    Args:
        known: (B, size) what is given of each image: 1, -1 or 0.
        asked: numbers of the attributes that are not given.

    Returns:
        float32 (2 * len(asked) + 1, B, size).
    """
    found = known.float().repeat(2 * len(asked) + 1, 1, 1)
    for place, attribute in enumerate(asked):
        found[2 * place, :, attribute], found[2 * place + 1, :, attribute] = -1.0, 1.0
    found[-1] = 0.0
    return found


def default_level(ladder: NoiseLadder, data_std: float | None) -> int:
    """The level whose noise is nearest as wide as the data.

    Where there is less noise, the constants of the labels differ by more; where there is more, images differ by less.
    """
    noise_to_signal = (ladder.cumulative_std / ladder.cumulative_scale)[:-1]
    return int((noise_to_signal / (data_std or 0.5)).log().abs().argmin())


def levels_to_try(num_levels: int) -> list[int]:
    """Levels among which labelled images are to choose."""
    return evenly_spread(num_levels, _MAX_LEVELS_TRIED)


def fit_constants(energies: Tensor, answers: Tensor, *, with_temperature: bool) -> Constants:
    """The constants of maximum likelihood on labelled images, each question by itself.

    The log-likelihood is concave in the offsets, and in offsets and beta together. Where all images are told rightly it
    has no maximum in beta; the weak prior beta * exp(-beta), worth less than one image, keeps it finite.

    Args:
        energies: (N, Q, K) float64.
        answers: (N, Q) int64, `UNKNOWN_ANSWER` where an image has none.
        with_temperature: whether beta is fitted, too; otherwise it is 1.

    Raises:
        ValueError: no image has some answer, whose offset would be infinite.
    """
    if missing := unseen(answers, energies.shape[2]):
        raise ValueError(f"no image has answer {missing[0][1]} to question {missing[0][0]}")
    fits = [
        _fit(energies[known, question], answers[known, question], with_temperature)
        for question, known in enumerate((answers >= 0).unbind(1))
    ]
    return Constants(torch.stack([offset for offset, _ in fits]), torch.stack([beta for _, beta in fits]))


def unseen(answers: Tensor, count: int) -> list[tuple[int, int]]:
    """Questions and answers that none of the images has.

    Args:
        answers: (N, Q) int64.
        count: K, answers to each question.
    """
    seen = [set(column.tolist()) for column in answers.unbind(1)]
    return [(q, k) for q, found in enumerate(seen) for k in range(count) if k not in found]


def _fit(energies: Tensor, answers: Tensor, with_temperature: bool) -> tuple[Tensor, Tensor]:
    """Offsets (K,) and beta () of one question; energies (N, K), answers (N,)."""
    # What all answers have in common changes no probability, and would cost digits.
    centred = energies - energies.mean(1, keepdim=True)
    # The first offset stays 0. As a logarithm, beta cannot become negative.
    free = torch.zeros(energies.shape[1] - 1, dtype=torch.float64, requires_grad=True)
    log_beta = torch.zeros((), dtype=torch.float64, requires_grad=with_temperature)
    optimizer = torch.optim.LBFGS(
        [free, log_beta] if with_temperature else [free],
        max_iter=_MAX_ITERATIONS,
        history_size=50,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        beta = log_beta.exp()
        logits = beta * centred + functional.pad(free, (1, 0))
        return functional.cross_entropy(logits, answers) + (beta - log_beta) / len(answers)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    offset = functional.pad(free.detach(), (1, 0))
    return offset - offset.mean(), log_beta.detach().exp()
