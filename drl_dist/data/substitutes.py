"""Samples that cannot be used: how they are told apart from an outage, and the ledger of what stood in for them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder

LEDGER = "substitutes.jsonl"
"""File of a run's folder, see `Substitute`."""


class DamageError(UserError):
    """A shard is missing or is not what its index says, or a sample of it is no sound image.

    Every worker finds the same, whenever it looks. Storage that does not answer is another error: what depends on the
    hour must not choose the images of a run.
    """


@dataclass(frozen=True, order=True)
class Substitute:
    """One damaged sample that another one stood in for; a line of the ledger as JSON."""

    position: int
    """Place in the stream of samples."""
    shard: str
    """Name of the damaged sample's shard."""
    sample: int
    """Its place there."""
    reason: str
    """What was found instead of it."""
    by_shard: str
    """Shard of the sample that was used."""
    by_sample: int


_LEDGER = TypeAdapter(list[Substitute], config=ConfigDict(extra="forbid", strict=True))


def format_ledger(substitutes: Iterable[Substitute]) -> bytes:
    """JSON Lines in the order of positions."""
    return b"".join(json.dumps(dataclasses.asdict(one)).encode() + b"\n" for one in sorted(substitutes))


def parse_ledger(text: bytes, *, source: str) -> list[Substitute]:
    """What `format_ledger` wrote.

    Raises:
        UserError: the text is something else; `source` is named.
    """
    try:
        return _LEDGER.validate_json(b"[" + b",".join(text.splitlines()) + b"]")
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            source,
            got=f"line {int(first['loc'][0]) + 1 if first['loc'] else 1}: {first['msg']}",
            expected="the JSON lines of a ledger",
            remedy="restore the file from a copy, or remove it to count from 0",
        ) from error


def read_ledger(run_url: str, *, before: int | None = None) -> list[Substitute]:
    """A run's substitutes, none if there is no ledger.

    Args:
        run_url: folder of the run.
        before: position that the run goes on from. Lines from there on are taken out of the file, since those steps
            are made again: none is ever told twice.

    Raises:
        UserError: the storage does not answer, or the ledger is damaged.
    """
    folder = Folder(run_url)
    try:
        found = parse_ledger(folder.read(LEDGER), source=f"ledger {folder.url_of(LEDGER)}")
    except FileNotFoundError:
        return []
    kept = [one for one in found if before is None or one.position < before]
    if len(kept) < len(found):
        folder.write(LEDGER, format_ledger(kept))
    return kept
