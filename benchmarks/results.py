"""Where a benchmark's results go."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from drl_dist.common.places import path_here


def open_results(parser: argparse.ArgumentParser, out: Path, results: Iterable[str], summary: Iterable[str]) -> None:
    """Create the folder, or end the command if it holds files with the summary's names but no results.

    Args:
        parser: of the command.
        out: the folder.
        results: names of the files that later starts reuse.
        summary: names of the files that every start overwrites.
    """
    found = [name for name in summary if (out / name).exists()]
    if found and not any((out / name).exists() for name in results):
        parser.error(f"--out: got {out} with {found[0]} of something else, expected a new folder; choose another")
    out.mkdir(parents=True, exist_ok=True)


def figures_file(text: str) -> Path:
    """The file that a text names, for figures that are written when all of them are measured; a type for argparse."""
    path = path_here(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"got {text}, expected a file in a folder that is there; choose another")
    return path
