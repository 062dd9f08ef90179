"""Restoring the training workers from the newest checkpoint: the first rank reads it and hands it to the others."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import distributed

from drl_dist.checkpoints.format import parse_checkpoint
from drl_dist.checkpoints.retention import listed_names, remove_orphaned
from drl_dist.checkpoints.run_record import check_checkpoint
from drl_dist.checkpoints.storage import StoredCheckpoint, checkpoint_name, is_own_name
from drl_dist.checkpoints.verify import VerifiedCheckpoint, read_newest_checkpoint, read_stored_checkpoint
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train.faults.restarts import OutdatedListError
from drl_dist.training.state import TrainState

Share = Callable[[bytes | None], bytes]
"""Gives every rank what the first one has; the others call it with None."""
_CHUNK_BYTES = 64 * 2**20


def restore(state: TrainState, run: RunConfig, fingerprint: str, *, is_first: bool, share: Share) -> None:
    """Load the newest checkpoint that verifies; a collective call of all ranks.

    The first rank reads each file once, compares it with its checksum while it does, and hands it to the others: all
    have the same checkpoint whatever happens to storage meanwhile. Storage, not Ray's list of what it knows about, says
    which one that is.

    Args:
        state: takes the tensors and the step; left alone if there is no checkpoint to continue from.
        run: the run.
        fingerprint: of its data.
        is_first: whether this is the first rank.
        share: see `broadcast`.

    Raises:
        UserError: the storage does not answer, no finished checkpoint verifies, or it is one of another run.
        OutdatedListError: on the first rank, if Ray Train's list is torn or names a later checkpoint.
    """
    found = _shared(_newest(run) if is_first else None, share, is_first=is_first)
    if found is None:
        return
    checkpoint = parse_checkpoint(found.files, source=found.url)
    check_checkpoint(checkpoint, found.url, run, fingerprint)
    state.load_tensors(checkpoint.tensors, checkpoint.state.step)
    if is_first:
        print(f"resuming after step {state.step} from {found.url}", flush=True)
        if found.url != run.start_from:
            # Not before: only what is older than a checkpoint that verifies may go.
            for stored in remove_orphaned(run.url, run.checkpoint.keep, StoredCheckpoint(found.url, state.step)):
                print(f"removing {stored.url}, which a kill had left behind", flush=True)


def _newest(run: RunConfig) -> VerifiedCheckpoint | None:
    """What the run continues from, read."""
    found = read_newest_checkpoint(run.url)
    if _is_outdated(run.url, "" if found is None else checkpoint_name(found.step)):
        raise OutdatedListError(None if found is None else found.step)
    if found is None and run.start_from is not None:
        return read_stored_checkpoint(run.start_from)
    return found


def _is_outdated(run_url: str, newest: str) -> bool:
    """Whether Ray Train's list is torn, or names a later checkpoint than the newest that verifies."""
    try:
        # Names sort as steps do.
        return any(is_own_name(name) and name > newest for name in listed_names(run_url))
    except (ValueError, TypeError, KeyError):
        return True


def _shared(found: VerifiedCheckpoint | None, share: Share, *, is_first: bool) -> VerifiedCheckpoint | None:
    """What the first rank has found, on every rank."""
    header = None
    if is_first:
        header = json.dumps(None if found is None else {"url": found.url, "names": list(found.files)}).encode()
    shared = json.loads(share(header))
    if shared is None:
        return None
    files = {name: share(None if found is None else found.files[name]) for name in shared["names"]}
    return VerifiedCheckpoint(shared["url"], files)


def broadcast(device: torch.device, content: bytes | None) -> bytes:
    """What the first rank has, on every rank of the process group; the others give None.

    Args:
        device: that the group exchanges tensors of.
    """
    if distributed.get_world_size() == 1:
        assert content is not None
        return content
    size = torch.tensor([0 if content is None else len(content)], device=device)
    distributed.broadcast(size, 0)
    blocks: list[bytes] = []
    for start in range(0, int(size), _CHUNK_BYTES):
        length = min(_CHUNK_BYTES, int(size) - start)
        # A copy: torch wants memory that may be written to.
        block = bytearray(length) if content is None else bytearray(content[start : start + length])
        tensor = torch.frombuffer(block, dtype=torch.uint8).to(device)
        distributed.broadcast(tensor, 0)
        blocks.append(tensor.cpu().numpy().tobytes())
    return b"".join(blocks) if content is None else content
