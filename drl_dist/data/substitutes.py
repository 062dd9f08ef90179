"""The error for damaged samples, as distinct from an outage, and the log of the samples that replaced them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder

SUBSTITUTES = "substitutes.jsonl"
"""Name of the substitution log in a run's folder; see `Substitute`."""


class DamageError(UserError):
    """A shard is missing or differs from its index, or a sample of it is not an intact image.

    Every worker finds the same damage at any time. Storage that does not answer is another error: the images of a run
    must not depend on when it runs.
    """


@dataclass(frozen=True, order=True)
class Substitute:
    """One damaged sample and the one that replaced it; a line of the substitution log, as JSON."""

    position: int
    """Position in the stream of samples."""
    shard: str
    """Name of the damaged sample's shard."""
    sample: int
    """Number of the damaged sample in its shard."""
    reason: str
    """What was found instead of an intact sample."""
    by_shard: str
    """Name of the shard of the sample that was used instead."""
    by_sample: int
    """Number of that sample in its shard."""


_ADAPTER = TypeAdapter(list[Substitute], config=ConfigDict(extra="forbid", strict=True))


def format_substitutes(substitutes: Iterable[Substitute]) -> bytes:
    """JSON Lines in the order of positions."""
    return b"".join(json.dumps(dataclasses.asdict(one)).encode() + b"\n" for one in sorted(substitutes))


def parse_substitutes(text: bytes, *, source: str) -> list[Substitute]:
    """The inverse of `format_substitutes`.

    Raises:
        UserError: the text is something else; the message names `source`.
    """
    try:
        return _ADAPTER.validate_json(b"[" + b",".join(text.splitlines()) + b"]")
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            source,
            got=f"line {int(first['loc'][0]) + 1 if first['loc'] else 1}: {first['msg']}",
            expected="a substitution log in JSON Lines",
            remedy="restore the file from a copy, or remove it to count from 0",
        ) from error


def read_substitutes(run_url: str, *, before: int | None = None) -> list[Substitute]:
    """The substitutes that a run's substitution log lists, none if there is no such file.

    Args:
        run_url: folder of the run.
        before: position from which the run resumes. Lines from there on are removed from the file, because those steps
            are repeated: no substitute is logged twice.

    Raises:
        UserError: the storage does not answer, or the log is damaged.
    """
    folder = Folder(run_url)
    try:
        source = f"substitution log {folder.url_of(SUBSTITUTES)}"
        found = parse_substitutes(folder.read(SUBSTITUTES), source=source)
    except FileNotFoundError:
        return []
    kept = [one for one in found if before is None or one.position < before]
    if len(kept) < len(found):
        folder.write(SUBSTITUTES, format_substitutes(kept))
    return kept
