"""Saved progress of a long-run job: adapted levels, finished batches, and chains in the middle of a batch."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drl_dist.common.progress import Advance
from drl_dist.jobs.common.output.job_records import Record, Records, SaveClock
from drl_dist.mcmc.kernel import Info, Observer, State
from drl_dist.mcmc.leapfrog import Point
from drl_dist.mcmc.record import ChainRecord
from drl_dist.sampling.long_run import Adapted, Position

ADAPTATION_NAME, CHAINS_NAME = "adaptation.safetensors", "chains.safetensors"


@dataclass
class Batch:
    """Chains that are computed together: what is known of them so far."""

    sums: dict[int, Tensor] = field(default_factory=dict)
    """By level that is done, as `ChainRecord.close` returns it; levels with draws alone have none."""
    traces: dict[int, Tensor] = field(default_factory=dict)
    """(num_steps, B, quantities) of traced levels that are done."""
    stages: list[Tensor] = field(default_factory=list)
    """uint8 (B, C, H, W), the noisiest first."""
    images: Tensor | None = None
    """uint8 (B, C, H, W) once all levels are done."""

    def to_record(self, facts: dict[str, Any], more: dict[str, Tensor]) -> Record:
        """All of it as arrays."""
        tensors = {f"sums/{t}": value for t, value in self.sums.items()}
        tensors |= {f"traces/{t}": value for t, value in self.traces.items()}
        tensors |= {f"stages/{number}": value for number, value in enumerate(self.stages)}
        tensors |= {} if self.images is None else {"images": self.images}
        return Record({name: value.cpu().numpy() for name, value in (tensors | more).items()}, facts)

    @classmethod
    def from_record(cls, record: Record) -> Batch:
        """The batch, on the CPU."""
        groups: dict[str, dict[int, Tensor]] = {"sums": {}, "traces": {}, "stages": {}}
        for name, array in record.arrays.items():
            group, _, number = name.partition("/")
            if group in groups:
                groups[group][int(number)] = torch.from_numpy(array)
        stages = [value for _, value in sorted(groups["stages"].items())]
        images = record.arrays.get("images")
        return cls(groups["sums"], groups["traces"], stages, None if images is None else torch.from_numpy(images))


@dataclass
class Interrupted:
    """A batch in the middle, and where its chains are."""

    length: int
    number: int
    """Number of the batch among those of its length."""
    batch: Batch
    position: Position
    record: tuple[int, dict[str, Tensor]] | None
    """Steps and sums of the level's `ChainRecord`, None if it has not begun."""


class LongRunProgress:
    """Records of one request.

    Args:
        records: where they are.
        request: digest of the request.
        device: where chains are computed.
    """

    def __init__(self, records: Records, request: str, device: torch.device) -> None:
        self._records, self._request, self._device = records, request, device
        self.clock = SaveClock()

    def adapted(self) -> Adapted | None:
        """How far an earlier start came with the step sizes."""
        record = self._records.load(ADAPTATION_NAME, self._request)
        if record is None:
            return None
        parts = [self._on_device(record.arrays[f"x/{number}"]) for number in range(len(record.arrays))]
        found = tuple((float(step_size), float(rate)) for step_size, rate in record.facts["found"])
        return Adapted(found, tuple(parts))

    def keep_adapted(self, adapted: Adapted) -> None:
        """Keep it, if it is time."""
        if self.clock.is_due():
            began = time.monotonic()
            arrays = {f"x/{number}": x.cpu().numpy() for number, x in enumerate(adapted.xs)}
            self._write(ADAPTATION_NAME, Record(arrays, {"found": adapted.found}), began)

    def finished(self, length: int, number: int) -> Batch | None:
        """A batch that an earlier start finished."""
        record = self._records.load(_batch_name(length, number), self._request)
        return None if record is None else Batch.from_record(record)

    def finish(self, length: int, number: int, batch: Batch) -> None:
        """Keep a finished batch."""
        began = time.monotonic()
        self._write(_batch_name(length, number), batch.to_record({}, {}), began)

    def interrupted(self) -> Interrupted | None:
        """The batch that an earlier start was in the middle of."""
        record = self._records.load(CHAINS_NAME, self._request)
        if record is None:
            return None
        facts, chains = (
            record.facts,
            {
                name.partition("/")[2]: self._on_device(array)
                for name, array in record.arrays.items()
                if name.startswith(("chains/", "record/"))
            },
        )
        state, steps = None, None
        if facts["next_step"]:
            state = Point(chains["y"], chains["log_density"], chains["gradient"])
            names = [name.partition("/")[2] for name in record.arrays if name.startswith("record/")]
            steps = facts["num_steps"], {name: chains[name] for name in names}
        position = Position(facts["level"], chains["x_noisy"], facts["next_step"], state)
        batch = Batch.from_record(record)
        batch.sums = {t: value.to(self._device) for t, value in batch.sums.items()}
        return Interrupted(facts["length"], facts["number"], batch, position, steps)

    def keep(self, length: int, number: int, batch: Batch, position: Position, record: ChainRecord | None) -> None:
        """Keep a batch in the middle, in the place of what was kept before."""
        began = time.monotonic()
        facts = {"length": length, "number": number, "level": position.t, "next_step": position.next_step}
        more = {"chains/x_noisy": position.x_noisy}
        if record is not None:
            more |= {f"chains/{name}": value for name, value in position.state._asdict().items()}
            more |= {f"record/{name}": value for name, value in record.sums().items()}
            facts["num_steps"] = record.num_steps
        self._write(CHAINS_NAME, batch.to_record(facts, more), began)

    def _write(self, name: str, record: Record, began: float) -> None:
        self._records.write({name: record.to_bytes(self._request)})
        self.clock.saved(began)

    def _on_device(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class Watch:
    """Sees every step of a batch: what the chains say about themselves, progress, and records from time to time.

    Args:
        progress: where records are kept.
        length: steps per level.
        number: of the batch.
        traced: levels whose chains are traced.
        advance: called with the image steps made.
        interrupted: what an earlier start left of this batch.
    """

    def __init__(
        self,
        progress: LongRunProgress,
        length: int,
        number: int,
        traced: frozenset[int],
        advance: Advance,
        interrupted: Interrupted | None,
    ) -> None:
        self._progress, self._length, self._number = progress, length, number
        self._traced, self._advance, self._interrupted = traced, advance, interrupted
        self.batch = Batch() if interrupted is None else interrupted.batch
        self._record: ChainRecord | None = None
        self._steps_seen = 0 if interrupted is None else interrupted.position.next_step

    def __call__(self, t: int, x_noisy: Tensor) -> Observer:
        """See `drl_dist.sampling.long_run.ObserveLevel`."""
        record = self._record = ChainRecord(x_noisy, is_traced=t in self._traced)
        if self._interrupted is not None and self._interrupted.record is not None:
            record.resume(self._interrupted.position.state.y, *self._interrupted.record)
        self._interrupted = None

        def observe(chain_step: int, state: State, info: Info | None) -> None:
            record(chain_step, state, info)
            self._steps_seen += 1
            self._advance(len(x_noisy))
            if self._progress.clock.is_due():
                position = Position(t, x_noisy, chain_step + 1, state)
                self._progress.keep(self._length, self._number, self.batch, position, record)

        return observe

    def end_level(self, t: int, x: Tensor) -> None:
        """Report the steps that were not reported yet, release the level's images, and keep where the chains are."""
        self._advance((self._length - self._steps_seen) * len(x))
        self._steps_seen, self._interrupted = 0, None
        if self._record is not None:
            if self._record.trace is not None:
                self.batch.traces[t] = self._record.trace
            self.batch.sums[t] = self._record.close()
            self._record = None
        if t > 0 and self._progress.clock.is_due():
            self._progress.keep(self._length, self._number, self.batch, Position(t - 1, x), None)


def record_files() -> list[str]:
    """Regular expressions of the names of all records."""
    return [re.escape(ADAPTATION_NAME), re.escape(CHAINS_NAME), r"\d+-\d{6,}\.safetensors"]


def record_names(lengths: Sequence[int], num_batches: int) -> list[str]:
    """The names of all records of a request, the most important one last.

    Args:
        lengths: of the chains.
        num_batches: of each length.
    """
    names = [_batch_name(length, number) for length in lengths for number in range(num_batches)]
    return [*names, CHAINS_NAME, ADAPTATION_NAME]


def _batch_name(length: int, number: int) -> str:
    return f"{length}-{number:06d}.safetensors"
