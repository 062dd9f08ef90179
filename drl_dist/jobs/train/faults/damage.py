"""Damaged samples while training: counted, reported, and recorded in the run's log of substitutes."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import Tensor
from torch.distributed import all_gather, barrier

from drl_dist.common.errors import UserError
from drl_dist.config.tree import RunConfig
from drl_dist.data.filesystem import Folder
from drl_dist.data.stream import ShardStream
from drl_dist.data.substitutes import SUBSTITUTES, Substitute, format_substitutes, parse_substitutes, read_substitutes
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState


@dataclass
class Damage:
    """Ends a run that has replaced too many samples; gathers what all ranks have replaced.

    Comes before the callback that writes checkpoints: the log is uploaded before the checkpoint that it belongs to, so
    that a complete checkpoint has all of its substitutes in the log.

    Args:
        stream: of this rank; its list of substitutes is emptied here.
        count: of the run so far, over all ranks.
        replaced: substitutes of the run so far, on rank 0; empty on other ranks.
    """

    run: RunConfig
    run_url: str
    rank: int
    world_size: int
    stream: ShardStream
    count: int
    replaced: list[Substitute]
    _waiting: list[Substitute] = field(default_factory=list[Substitute])
    _text: bytes | None = None
    _writing: Lock = field(default_factory=Lock)
    _told: set[str] = field(default_factory=set[str])

    @classmethod
    def take_up(
        cls, run: RunConfig, run_url: str, stream: ShardStream, *, rank: int, world_size: int, position: int
    ) -> Damage:
        """For a run that continues from a position of the stream; a collective call of all ranks."""
        replaced = read_substitutes(run_url, before=position) if rank == 0 else []
        count = int(broadcast_from_rank_zero(len(replaced)))
        return cls(run, run_url, rank, world_size, stream, count, replaced)

    @property
    def substitutes(self) -> bool:
        """Whether damage is tolerated at all; the same on all ranks."""
        return self.run.loader.on_damage == "substitute"

    def on_step(self, report: StepReport, state: TrainState) -> None:
        if not self.substitutes:
            return
        self._tell(self.stream.substitutes)
        self._waiting += self.stream.substitutes
        self.stream.substitutes.clear()
        # Read on all ranks alike: it is a sum over them.
        total, limit = int(report.metrics()["bad_samples"]), self.run.loader.max_substitutes
        if total <= limit:
            return
        self.gather(state.network.device)
        self.write()
        # The first rank to leave takes the others along.
        barrier()
        raise UserError(
            f"data {self.run.data}",
            got=f"{total} damaged samples by step {report.step}",
            expected=f"at most {limit}",
            remedy=f"mend the shards that {Folder(self.run_url).url_of(SUBSTITUTES)} lists, "
            "or raise loader.max_substitutes",
        )

    def gather(self, device: torch.device) -> None:
        """Bring the log of substitutes up to this step to rank 0; a collective call of all ranks."""
        if not self.substitutes:
            return
        mine = format_substitutes(self._waiting)
        self._waiting.clear()
        for text in _all_bytes(mine, self.world_size, device):
            if self.rank == 0:
                self.replaced += parse_substitutes(text, source="another worker's part of the log of substitutes")
        self._text = format_substitutes(self.replaced) if self.replaced else None

    def write(self) -> None:
        """Write what was gathered last, on rank 0 if there is anything; in any thread.

        One at a time, and always the newest: the upload of a checkpoint, which may take long, must not put the log of
        its own step in the place of a later one.

        Raises:
            UserError: the storage does not take it.
        """
        with self._writing:
            if self._text is not None:
                Folder(self.run_url).write(SUBSTITUTES, self._text)

    def _tell(self, fresh: list[Substitute]) -> None:
        """One line for each damaged shard; the log of substitutes has them all."""
        data, substitutes = Folder(self.run.data), Folder(self.run_url).url_of(SUBSTITUTES)
        for one in fresh:
            if one.shard not in self._told:
                self._told.add(one.shard)
                print(
                    f"damaged: sample {one.sample} of shard {data.url_of(one.shard)} ({one.reason}); others stand in "
                    f"for it and for what else is damaged there, see {substitutes}",
                    flush=True,
                )


def _all_bytes(mine: bytes, world_size: int, device: torch.device) -> list[bytes]:
    """What each rank has, in the order of ranks."""

    def gathered(tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(world_size)]
        all_gather(found, tensor)
        return found

    sizes = [int(size) for size in gathered(torch.tensor([len(mine)], device=device))]
    padded = torch.zeros(max(1, *sizes), dtype=torch.uint8)
    padded[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8) if mine else padded[:0]
    parts = gathered(padded.to(device))
    return [part[:size].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]
