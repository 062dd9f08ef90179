"""Ways of drawing normal data with exact energies: what they draw is normal too, with variances that need no samples.

All that a way does is then linear in its normals, and separate along the principal components of the data if it has no
other basis. So a batch in which each image has ones in place of one draw of normals, and zeros in place of all others,
gives the response to each of them; the variance of what is drawn is the sum of their squares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.chains.model import Basis, Model, bases_of
from benchmarks.chains.moves import Adjusted
from benchmarks.chains.sampler import Way, draw
from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.noise import Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad

Slot = tuple[Purpose, int, int]
"""Purpose, level and chain step of a draw."""


@dataclass
class OneAtATime:
    """Ones for image i where the i-th slot is asked for, else zeros; takes down what is asked for. See `Noise`."""

    slots: list[Slot] = field(default_factory=list[Slot])
    is_learning: bool = True

    def normal(
        self,
        purpose: Purpose,
        sample_ids: Tensor,
        level: Tensor | int,
        chain_steps: Sequence[int],
        shape: Sequence[int],
    ) -> Tensor:
        """See `Noise.normal`."""
        assert isinstance(level, int)
        found = torch.zeros(len(chain_steps), len(sample_ids), *shape)
        for place, step in enumerate(chain_steps):
            slot = (purpose, level, step)
            if self.is_learning and slot not in self.slots:
                self.slots.append(slot)
            elif not self.is_learning:
                found[place, self.slots.index(slot)] = 1.0
        return found

    def uniform(
        self, purpose: Purpose, sample_ids: Tensor, level: Tensor | int, chain_steps: Sequence[int], count: int
    ) -> Tensor:
        """Nothing that is linear chooses."""
        raise ValueError("not a linear way")


@dataclass(frozen=True)
class Exactness:
    """How what is drawn differs from normal data."""

    gradients: int
    divergence: float
    """Kullback-Leibler divergence of it from the data, in nats over all directions."""
    narrowest: float
    """Least ratio of a variance to the true one."""
    widest: float


def normal_model(variances: Tensor, experiment: Experiment) -> Model:
    """Normal data whose pixels are independent, with these variances (D,), and their energies."""
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        t = int(level[0])
        of_x = ladder.cumulative_scale[t] ** 2 * variances + ladder.cumulative_std[t] ** 2
        precision = (1 / (levels.transition_scale[t] ** 2 * of_x)).float()[None, None]

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            gradient = -y * precision
            return 0.5 * (y * gradient).flatten(1).sum(1), gradient

        return raw

    basis = Basis(torch.eye(len(variances), dtype=torch.float64), variances)
    return Model(levels, ladder, raw_at, {"components": basis}, OneAtATime(), (1, 1, len(variances)))


def components_of(images: Tensor) -> Tensor:
    """Variances (D,) of images (N, C, H, W), uint8, along their principal components."""
    return bases_of(to_unit_range(images))["components"].variances


def is_linear(way: Way) -> bool:
    """Whether `exactness` knows what a way draws."""
    bases = (way.start_basis, getattr(way.chain, "basis", None))
    return not isinstance(way.chain, Adjusted) and set(bases) <= {None, "components"}


def exactness(model: Model, way: Way) -> Exactness:
    """What a way makes of normal data; x_0 is looked at, with its noise, whatever comes behind it."""
    without_end = dataclasses.replace(way, has_end=False)
    noise = OneAtATime()
    model.noise, model.num_gradients = noise, 0
    draw(model, without_end, torch.zeros(1, dtype=torch.int64))
    gradients, noise.is_learning = model.num_gradients + way.has_end, False
    responses = draw(model, without_end, torch.arange(len(noise.slots))).double().flatten(1)
    ladder, variances = model.ladder, model.bases["components"].variances
    true = ladder.cumulative_scale[0] ** 2 * variances + ladder.cumulative_std[0] ** 2
    ratio = responses.square().sum(0) / true
    divergence = 0.5 * float((ratio - 1 - ratio.log()).sum())
    return Exactness(gradients, divergence, float(ratio.min()), float(ratio.max()))


def exactness_table(model: Model, groups: Mapping[str, Mapping[str, Way]]) -> str:
    """A Markdown table of all ways that are linear."""
    lines = ["| way | gradients | KL, nats | variances, over the true ones |", "|---|---|---|---|"]
    for group, ways in groups.items():
        for label, way in ways.items():
            if is_linear(way):
                found = exactness(model, way)
                spread = f"{found.narrowest:.2f} to {found.widest:.2f}"
                lines.append(f"| {group}: {label} | {found.gradients} | {found.divergence:.3g} | {spread} |")
    return "\n".join(lines) + "\n"
