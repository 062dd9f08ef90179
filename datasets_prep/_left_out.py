"""Images that are left out of the shards: those that could not be read, and those smaller than asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from datasets_prep._listing import counted_kinds, printable
from datasets_prep._source import Source
from drl_dist.common.amounts import counted
from drl_dist.data.pixels.pictures import PictureError

UNREADABLE_NAME = "unreadable.json"
"""Lists both."""
UNREADABLE, SMALL = "unreadable", "small"
"""How many there are of each, in an index."""
IS_SMALL = "is_small"
"""Marks the second in a list."""
MOST_LISTED = 10


class TooSmallError(PictureError):
    """A picture that can be read, and has fewer pixels than the data set is to have."""


def numbers_left_out(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What an index says of images that were left out.

    Args:
        entries: of all shards' records.
    """
    small = sum(bool(entry.get(IS_SMALL)) for entry in entries)
    return {UNREADABLE: len(entries) - small} | ({SMALL: small} if small else {})


def in_words(numbers: Mapping[str, int]) -> str:
    """The numbers as a note beside others; empty without any."""
    words = {UNREADABLE: "unreadable", SMALL: "too small"}
    return ", ".join(f"{numbers[kind]} {word}" for kind, word in words.items() if numbers.get(kind))


def report_entries(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print how many images were left out of the shards, and why the first of them were."""
    for why, is_small in (("could not be read", False), ("smaller than --min-side", True)):
        these = [entry for entry in entries if bool(entry.get(IS_SMALL)) == is_small]
        if not these:
            continue
        are = "is" if len(these) == 1 else "are"
        they = f"{counted(len(these), 'image')} {are if is_small else ''}".strip()
        print(f"{they} {why} and {are} left out; {UNREADABLE_NAME} lists them:", file=sys.stderr)
        for entry in these[:MOST_LISTED]:
            print(printable(f"  {entry['source']}: {entry['reason']}"), file=sys.stderr)


def report_left_out(source: Source, made_by: Mapping[str, Any]) -> None:
    """Print the numbers of an index, and the files that were not taken for images."""
    words = {UNREADABLE: "that could not be read", SMALL: "smaller than --min-side"}
    read = [f"{made_by[kind]} {word}" for kind, word in words.items() if made_by.get(kind)]
    listed = [f"{' and '.join(read)} ({UNREADABLE_NAME} lists them)"] if read else []
    kinds = [counted_kinds(source.left_out)] if any(source.left_out.values()) else []
    print(f"Left out: {', '.join(listed + kinds) or 'nothing'}.", file=sys.stderr)
