"""Statistics of the chains of one level, summed on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.mcmc.kernel import Info, State, root_mean_square
from drl_dist.mcmc.leapfrog import Point

TRACED_PIXELS = 8
_SUMS = ("acceptance", "moves", "squares", "largest", "divergences", "leapfrogs")


class ChainRecord:
    """An observer of `run_chain`; it never makes the host wait.

    Args:
        start: (B, ...) what displacement is measured from, x_noisy.
        is_traced: also keep the log-density and `TRACED_PIXELS` evenly spaced pixels after every step.
    """

    def __init__(self, start: Tensor, *, is_traced: bool = False) -> None:
        self._start, self._is_traced = start, is_traced
        self._sums: Tensor | None = None
        zeros = torch.zeros(len(start), dtype=torch.float64, device=start.device)
        self._acceptance, self._moves, self._squares, self._largest = (zeros.clone() for _ in range(4))
        self._divergences = torch.zeros_like(zeros, dtype=torch.int64)
        self._leapfrogs = torch.zeros_like(self._divergences)
        self._y, self._num_steps = start, 0
        self._trace: list[Tensor] = []
        size = start[0].numel()
        self._pixels = torch.linspace(0, size - 1, min(size, TRACED_PIXELS), device=start.device).round().long()

    def __call__(self, chain_step: int, state: State, info: Info | None) -> None:
        """See `drl_dist.mcmc.kernel.Observer`."""
        self._num_steps += 1
        self._y = state.y
        if info is not None:
            self._acceptance += info.acceptance_probability
            self._moves += info.is_accepted
            self._divergences += info.is_divergent
            self._leapfrogs += info.num_leapfrog_steps
            size = info.energy_error.abs()
            # A divergence is counted; its error would drown all others.
            self._squares += torch.where(info.is_divergent, 0.0, size.square())
            self._largest = torch.maximum(self._largest, torch.where(info.is_divergent, 0.0, size))
        if self._is_traced:
            pixels = state.y.flatten(1)[:, self._pixels]
            quantities = [state.log_density[:, None], pixels] if isinstance(state, Point) else [pixels]
            self._trace.append(torch.cat(quantities, dim=1))

    @property
    def trace(self) -> Tensor | None:
        """(num_steps, B, quantities): the log-density, then pixels; None if nothing was traced."""
        return torch.stack(self._trace) if self._trace else None

    def sums(self) -> dict[str, Tensor]:
        """What the steps so far have added up to, for `resume`: (B,) each, and the trace if there is one."""
        sums = {name: getattr(self, "_" + name) for name in _SUMS}
        return sums | ({} if self.trace is None else {"trace": self.trace})

    def resume(self, y: Tensor, num_steps: int, sums: Mapping[str, Tensor]) -> None:
        """Go on from the middle of a chain.

        Args:
            y: (B, ...) where the chains are.
            num_steps: that have been recorded.
            sums: as `sums` gave them then.
        """
        self._y, self._num_steps = y, num_steps
        for name in _SUMS:
            setattr(self, "_" + name, sums[name].clone())
        self._trace = list(sums["trace"].unbind()) if "trace" in sums else []

    @property
    def num_steps(self) -> int:
        """Recorded so far."""
        return self._num_steps

    def close(self) -> Tensor:
        """Let go of the images: a thousand levels of them would fill the memory. No more steps may follow.

        Returns:
            (9,) float64: chains, steps, sums over both of what `ChainSummary` averages, and last the largest error.
        """
        if self._sums is None:
            displacement = root_mean_square(self._y - self._start)
            columns = [displacement, self._acceptance, self._moves, self._squares, self._divergences, self._leapfrogs]
            sums = torch.stack([column.double() for column in columns]).sum(1)
            count = len(self._start)
            counts = torch.tensor([count, self._num_steps * count], dtype=torch.float64, device=sums.device)
            self._sums = torch.cat([counts, sums, self._largest.max()[None]])
            self._start = self._y = self._start[:0]
        return self._sums


@dataclass(frozen=True, kw_only=True)
class ChainSummary:
    """Averages over all chains, and steps, of one level."""

    num_chains: int
    num_steps: int
    """Of each chain."""
    acceptance_rate: float
    """Mean acceptance probability."""
    move_rate: float
    """Part of the steps that ended somewhere else than they began."""
    displacement: float
    """Per-pixel root mean square between x_noisy and where the chain ended, averaged over chains."""
    energy_error_rms: float
    """In nats, without divergences."""
    energy_error_max: float
    """In nats and size, without divergences."""
    num_divergences: int
    """Steps with an energy error above 1000 nats."""
    leapfrogs_per_step: float


def summarise(closed: Sequence[Tensor]) -> ChainSummary:
    """The summary of batches of chains that made equally many steps.

    Args:
        closed: what `ChainRecord.close` returned of each, (9,).

    Raises:
        ValueError: no record, or none with a step.
    """
    if not closed:
        raise ValueError("no chains to summarise")
    table = torch.stack(list(closed)).cpu()
    chains, steps, displacement, acceptance, moves, squares, divergences, leapfrogs = table[:, :8].sum(0).tolist()
    if steps == 0:
        raise ValueError("chains without steps have nothing to summarise")
    return ChainSummary(
        num_chains=round(chains),
        num_steps=round(steps / chains),
        acceptance_rate=acceptance / steps,
        move_rate=moves / steps,
        displacement=displacement / chains,
        energy_error_rms=(squares / max(1.0, steps - divergences)) ** 0.5,
        energy_error_max=float(table[:, 8].max()),
        num_divergences=round(divergences),
        leapfrogs_per_step=leapfrogs / steps,
    )
