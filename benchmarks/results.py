"""The folder of a benchmark's results."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path


def open_results(parser: argparse.ArgumentParser, out: Path, results: Iterable[str], summary: Iterable[str]) -> None:
    """Make the folder, or end the command if it holds files of the summary's names and no result they could be of.

    Args:
        parser: of the command.
        out: the folder.
        results: names of the files that are kept from one start to the next.
        summary: names of the files that every start writes anew.
    """
    found = [name for name in summary if (out / name).exists()]
    if found and not any((out / name).exists() for name in results):
        parser.error(f"--out: got {out} with {found[0]} of something else, expected a new folder; choose another")
    out.mkdir(parents=True, exist_ok=True)
