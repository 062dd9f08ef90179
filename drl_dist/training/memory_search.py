"""The search for the cheapest way of making a step that fits into memory.

Slices cost no operations but those of preparing weights once more for each; activations that are computed again cost
one more forward of the update. So the order of preference is: everything at once; slices of many images; activations
computed again; and last slices of few images, which leave most of a GPU idle.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Literal

from drl_dist.common.amounts import counted, mebibytes
from drl_dist.common.errors import UserError
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.cost import StepCost, phases
from drl_dist.training.slices import slices
from drl_dist.training.traced_costs import Costs, known_step_cost

MANY_IMAGES = 8
"""A slice of fewer images is made only where no other way fits."""
Way = Literal["slices", "checkpointing"]


class MemorySearch:
    """Looks for the first way that fits; arguments as of `drl_dist.training.memory.fit_memory`.

    Args:
        limit: bytes that tensors may take.
        has_graphs: a captured graph of the chain keeps its memory during the update, and while images are drawn.
        known: costs of steps that were traced before; gets the others that are asked for.
    """

    def __init__(
        self,
        experiment: Experiment,
        engine: EngineConfig,
        num_workers: int,
        limit: int,
        has_graphs: bool,
        known: Costs,
    ) -> None:
        self._engine, self._limit, self._has_graphs = engine, limit, has_graphs
        self._share = math.ceil(experiment.train.batch_size / num_workers)
        alone = [phase for _, phase in phases(experiment)]
        recomputes = experiment.model.is_built_in and any(phase.optim.needs_negatives for phase in alone)
        self._ways: list[Way] = ["slices", "checkpointing"] if recomputes else ["slices"]

        @cache
        def costs(way: Way, images: int) -> list[StepCost]:
            given = replace(engine, memory=way, chain_images=images, update_images=images)
            return [known_step_cost(known, phase, num_workers=num_workers, engine=given) for phase in alone]

        self._costs = costs

    def found(self) -> tuple[EngineConfig, str]:
        """The engine whose memory is the first way that fits, and a line that says why.

        Raises:
            UserError: none does.
        """
        asked = self._engine.memory
        ways: list[Way] = self._ways if asked in ("auto", "plain") else [asked]
        if asked == "auto" and self._fits("slices", self._share, self._share):
            peak = self._peak("slices", self._share, self._share)
            return replace(self._engine, memory="plain"), f"memory: all at once, {self._of_limit(peak)}"
        # Slices of one image come last: there are as many to be traced as images.
        tries: list[tuple[Way, int]] = [(way, fewest) for fewest in (min(MANY_IMAGES, self._share), 1) for way in ways]
        chosen = next((found for one in tries if (found := self._largest(*one)) is not None), None)
        if chosen is None:
            chains, updates = self._sizes(1)
            # Of a small network what takes least is all at once, since slices add gradients to each other.
            ends: list[tuple[Way, int, int]] = [(way, chains[end], updates[end]) for way in ways for end in (0, -1)]
            least = min(ends, key=lambda one: self._peak(*one))
            raise UserError(
                "config field engine.memory",
                got=f"{asked} with {mebibytes(self._limit)} for tensors",
                expected=f"at least {mebibytes(self._peak(*least))}, for {_told(*least)}",
                remedy="take devices with more memory, more workers, or a smaller network",
            )
        way, chain, update = chosen
        peak, plain = self._peak(way, chain, update), self._peak("slices", self._share, self._share)
        whole = self._costs("slices", self._share)[-1]
        more = 100 * (self._costs(way, update)[-1].update_flop - whole.update_flop) / whole.flop
        return (
            replace(self._engine, memory=way, chain_images=chain, update_images=update),
            f"memory: {_told(way, chain, update)}, {self._of_limit(peak)}, {more:.1f} % more operations; "
            f"all at once would take {mebibytes(plain)}",
        )

    def _of_limit(self, peak: int) -> str:
        return f"{mebibytes(peak)} of {mebibytes(self._limit)} for tensors"

    def _sizes(self, fewest: int) -> tuple[list[int], list[int]]:
        """Images of slices of the chain and of the update that come into question, the most first."""
        halved = [self._share]
        while halved[-1] > fewest and math.ceil(halved[-1] / 2) >= fewest:
            halved.append(math.ceil(halved[-1] / 2))
        given = self._engine.chain_images, self._engine.update_images
        chain, update = ([one] if one is not None else halved for one in given)
        return chain, update

    def _largest(self, way: Way, fewest: int) -> tuple[Way, int, int] | None:
        """The way with the most images in slices of the chain and of the update that fit."""
        chains, updates = self._sizes(fewest)
        for index in range(max(len(chains), len(updates))):
            chain, update = chains[min(index, len(chains) - 1)], updates[min(index, len(updates) - 1)]
            if self._fits(way, chain, update):
                chain = next(more for more in chains if self._fits(way, more, update))
                update = next(more for more in updates if self._fits(way, chain, more))
                return way, chain, update
        return None

    def _fits(self, way: Way, chain: int, update: int) -> bool:
        return self._peak(way, chain, update) <= self._limit

    def _peak(self, way: Way, chain: int, update: int) -> int:
        """Most bytes that a worker holds at once, in any phase of the run."""
        peaks: list[int] = []
        # Slices of another size have a graph of their own.
        graphs = len({part.stop - part.start for part in slices(self._share, chain)}) if self._has_graphs else 0
        for in_chain, in_update in zip(self._costs(way, chain), self._costs(way, update), strict=True):
            kept = graphs * (in_chain.chain_bytes - in_chain.state_bytes)
            # Of the averaged weights' chains, too, which draw images now and then beside those graphs.
            peaks.append(max(in_chain.chain_bytes, in_update.update_bytes) + kept)
        return max(peaks)


def _told(way: Way, chain: int, update: int) -> str:
    """A way in words."""
    again = " with activations computed again" if way == "checkpointing" else ""
    return f"chains of {counted(chain, 'image')} and updates of {counted(update, 'image')} at a time{again}"
