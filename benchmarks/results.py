"""Creation and check of the folder for a benchmark's results."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path


def open_results(parser: argparse.ArgumentParser, out: Path, results: Iterable[str], summary: Iterable[str]) -> None:
    """Create the folder, or end the command if it holds files with the summary's names but no results.

    Args:
        parser: parser of the command.
        out: the folder.
        results: names of the files that are kept from one start to the next.
        summary: names of the files that every start overwrites.
    """
    found = [name for name in summary if (out / name).exists()]
    if found and not any((out / name).exists() for name in results):
        parser.error(f"--out: got {out} with {found[0]} of something else, expected a new folder; choose another")
    out.mkdir(parents=True, exist_ok=True)
