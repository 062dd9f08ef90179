"""Weighted sums of one network's energies under several labels: guidance, and concepts put together.

With f(y) the energy without a label, what is sampled is

    F(y) = f(y) + (1 + w) sum_i a_i (f(y, c_i) - f(y))

at every level, in chains and their starts alike. With one label, a = 1, it is classifier-free guidance,
(1 + w) f(y, c) - w f(y): density proportional to p(y | c) p(c | y)**w (Ho and Salimans, 2021). With several, w = 0, it
is proportional to p(y) prod_i (p(y | c_i) / p(y))**a_i, which is p(y | c_1, c_2, ...) where labels are independent
given the image (Du, Li and Mordatch, 2020). The weights of all energies add up to 1, so what they have in common, such
as the white Gaussian part, is neither multiplied nor lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad, RawAtLevel


class LabelledRawAtLevel(Protocol):
    """A network at levels (B,) with labels (B, size), as `drl_dist.training.chain.GradientEngine.raw_at`."""

    def __call__(self, level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad: ...


@dataclass(frozen=True)
class Concept:
    """A label, and how much of it is wanted."""

    weight: float
    """a_i; negative to keep away from the label."""
    condition: Tensor
    """(B, size), or (size,) for all images."""


def composed(raw_at: LabelledRawAtLevel, concepts: Sequence[Concept], guidance: float = 0.0) -> RawAtLevel:
    """The network of the sum F, of which every gradient is one of as many images as there are energies in it.

    Args:
        raw_at: the network.
        concepts: labels and their weights; none for f(y).
        guidance: w.
    """
    weights = [(1 + guidance) * concept.weight for concept in concepts]
    rest = 1 - sum(weights)
    terms = [(weight, concept.condition) for weight, concept in zip(weights, concepts, strict=True) if weight]
    if not terms:
        return raw_at
    if len(terms) == 1 and terms[0][0] == 1:
        label = terms[0][1]
        return lambda level: raw_at(level, _of(label, level))
    if rest:
        terms.append((rest, torch.zeros_like(terms[0][1])))
    return partial(_weighted, raw_at, terms)


def _weighted(raw_at: LabelledRawAtLevel, terms: Sequence[tuple[float, Tensor]], level: Tensor) -> LogDensityAndGrad:
    count = len(terms)
    network = raw_at(level.repeat(count), torch.cat([_of(condition, level) for _, condition in terms]))
    # Copied to the device once, not at each gradient, where it would wait for the one before.
    exact = torch.tensor([weight for weight, _ in terms], dtype=torch.float64, device=level.device)

    def raw_and_grad(y: Tensor) -> tuple[Tensor, Tensor]:
        raw, gradient = network(y.repeat(count, *[1] * (y.dim() - 1)))
        return (
            torch.einsum("k,kb->b", exact.to(raw.dtype), raw.reshape(count, -1)),
            torch.einsum("k,kb...->b...", exact.to(gradient.dtype), gradient.reshape(count, *y.shape)),
        )

    return raw_and_grad


def _of(condition: Tensor, level: Tensor) -> Tensor:
    """(B, size) on the levels' device."""
    return condition.to(level.device).expand(len(level), -1)
