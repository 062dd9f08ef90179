"""What a step minimises: the recovery likelihood, or the score of the normal approximation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import NoiseLadder, Pairs
from drl_dist.diffusion.recovery import Levels, matching_loss, recovery_loss
from drl_dist.mcmc.kernel import column, root_mean_square
from drl_dist.training.chain import GradientEngine


class Outcome(NamedTuple):
    """A loss, and what is told about each sample."""

    loss: Tensor
    """()"""
    told: dict[str, Tensor]
    """(B,) each, without gradients."""


class Forward(nn.Module):
    """The update's forward as a module, so that DDP can wrap it.

    Args:
        engine: of the network.
        is_gradient: give the image gradient of raw instead of raw.
    """

    def __init__(self, engine: GradientEngine, *, is_gradient: bool) -> None:
        super().__init__()
        self.network = engine.network
        self._engine, self._is_gradient = engine, is_gradient

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        """Raw (B,), or its gradient (B, C, H, W), at images (B, C, H, W) and levels (B,)."""
        return self._engine.gradient(y, level) if self._is_gradient else self._engine.forward(y, level)


def recovery_outcome(forward: nn.Module, pairs: Pairs, y_pos: Tensor, y_neg: Tensor, here: Levels) -> Outcome:
    """Minus the recovery log-likelihood, both ends of the chain in one forward (Algorithm 1).

    Args:
        forward: `Forward` of raw values.
        y_pos, y_neg: (B, C, H, W), or (2B, C, H, W) of which the second half are other draws for the same pairs.
        here: (B,) of the pairs' levels.
    """
    draws = len(y_pos) // len(pairs.level)
    raw = forward(torch.cat([y_pos, y_neg]), pairs.level.repeat(2 * draws))
    raw_pos, raw_neg = (half.reshape(draws, -1).mean(0) for half in raw.chunk(2))
    positive, negative = raw_pos.detach() * here.energy_scale, raw_neg.detach() * here.energy_scale
    told = {
        "log_density_pos": positive,
        "log_density_neg": negative,
        "log_density_gap": positive - negative,
        "displacement": root_mean_square(y_neg[: len(pairs.level)] - pairs.x_noisy).to(raw.dtype),
    }
    return Outcome(recovery_loss(raw_pos, raw_neg, here.loss_weight), told)


def matching_outcome(
    forward: nn.Module, pairs: Pairs, here: Levels, ladder: NoiseLadder, experiment: Experiment
) -> Outcome:
    """Minus the log-likelihood of the normal approximation, or the denoising score matching loss.

    With ``loss_weight inverse_std`` a sample weighs cumulative_std_{t+1}**2 instead of sigma_{t+1}**2: the loss is then
    that of the noise predicted, -cumulative_std_{t+1} grad f, at every level.

    Args:
        forward: `Forward` of gradients.
        here: (B,) of the pairs' levels.
    """
    gradient = column(here.energy_scale, pairs.x_noisy) * forward(pairs.x_noisy, pairs.level)
    std = ladder.cumulative_std.to(gradient.device, gradient.dtype)[pairs.level + 1]
    target = pairs.score
    if experiment.optim.objective == "normal_likelihood":
        target = (pairs.y_pos - pairs.x_noisy) * column(here.recovery_precision, pairs.x_noisy)
    is_equal = experiment.optim.loss_weight == "inverse_std"
    weight = std.square() if is_equal else 1 / here.recovery_precision
    predicted = -gradient.detach() * column(std, gradient)
    noise = -pairs.score * column(std, gradient)
    told = {"predicted_noise": root_mean_square(predicted), "noise_error": root_mean_square(predicted - noise)}
    return Outcome(matching_loss(gradient, target, weight), told)
