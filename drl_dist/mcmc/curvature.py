"""How curved a conditional density is where its chains move, from gradients that they compute anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad
from drl_dist.mcmc.kernel import column


class CurvatureAlongMoves:
    """How much the gradient of a conditional density changed over each move of its chains.

    With dy the moves of a chain and dg the changes of grad log p(y_t | x_{t+1}) over them, the curvature is
    sqrt(sum |dg|**2 / sum |dy|**2): of a normal density, the root mean square of its curvatures along the moves, which
    is at most the largest. Noise moves chains alike in all directions, so of images it is near the largest, which
    nearly all directions have.

    Args:
        here: (B,) of the chains' levels.
    """

    def __init__(self, here: Levels) -> None:
        self._here = here
        self._last: tuple[Tensor, Tensor] | None = None
        self._changes = self._moves = torch.zeros_like(here.step_size)

    @classmethod
    def joined(cls, here: Levels, parts: Sequence[CurvatureAlongMoves]) -> CurvatureAlongMoves:
        """What was measured along the chains of slices of a batch, one after the other.

        Args:
            here: (B,) of the batch.
            parts: of its slices.
        """
        whole = cls(here)
        whole._changes = torch.cat([part._changes for part in parts])
        whole._moves = torch.cat([part._moves for part in parts])
        return whole

    def watching(self, raw_and_grad: LogDensityAndGrad) -> LogDensityAndGrad:
        """The same network at these levels, each of whose calls is remembered."""

        def watched(y: Tensor) -> tuple[Tensor, Tensor]:
            raw, gradient = raw_and_grad(y)
            self._add(y, gradient)
            return raw, gradient

        return watched

    def _add(self, y: Tensor, gradient: Tensor) -> None:
        if self._last is not None:
            move, change = y - self._last[0], gradient - self._last[1]
            scale, precision = self._here.energy_scale, self._here.recovery_precision
            change = column(scale, y) * change - column(precision, y) * move
            self._changes = self._changes + change.square().flatten(1).sum(1)
            self._moves = self._moves + move.square().flatten(1).sum(1)
        self._last = y, gradient

    def curvature(self) -> Tensor:
        """(B,) of chains of two steps or more."""
        return (self._changes / self._moves).sqrt()
