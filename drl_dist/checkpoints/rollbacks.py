"""Rollbacks of a diverged run to its newest checkpoint with other noise, as recorded in the run's folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from drl_dist.checkpoints.format import parse_json_object
from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder

ROLLBACKS = "rollbacks.json"


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """One return to a checkpoint."""

    diverged_at: int
    """Steps made when it was seen."""
    back_to: int
    """Steps of the checkpoint; 0 if there was none, so that the run began from scratch."""
    reason: str


def read_rollbacks(run_url: str) -> list[Rollback]:
    """Those of a run so far, the oldest first.

    Raises:
        UserError: the storage does not answer, or the file is not what `add_rollback` writes.
    """
    source = Folder(run_url).url_of(ROLLBACKS)
    try:
        text = Folder(run_url).read(ROLLBACKS)
    except FileNotFoundError:
        return []
    try:
        return [
            Rollback(diverged_at=int(entry["diverged_at"]), back_to=int(entry["back_to"]), reason=str(entry["reason"]))
            for entry in parse_json_object(text, source=source)["rollbacks"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"file {source}",
            got=repr(error),
            expected="a list of roll-backs",
            remedy="restore it from a copy, or delete it to train on with the noise of the run's seed",
        ) from error


def add_rollback(run_url: str, rollback: Rollback) -> list[Rollback]:
    """Remember one more, before anything is trained with its noise; all of them."""
    known = [*read_rollbacks(run_url), rollback]
    text = json.dumps({"rollbacks": [asdict(one) for one in known]}, indent=2) + "\n"
    Folder(run_url).write(ROLLBACKS, text.encode())
    return known


def noise_seed(seed: int, num_rollbacks: int) -> int:
    """Seed of levels, pairs and chains after so many roll-backs: the run's own at first. In [0, 2**63)."""
    if num_rollbacks == 0:
        return seed
    digest = hashlib.sha256(f"rollback/{seed}/{num_rollbacks}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
