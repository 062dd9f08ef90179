"""The options of the command."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.quality.settings import DATA, SETTINGS
from datasets_prep._options import DEBIAN_FOLDER
from drl_dist.common.program import EXIT_USER_ERROR
from drl_dist.common.validation import Rule, local_of, refuse_broken, whole_number

_FEWEST_IMAGES = 64
POINTS = (1 / 10, 1 / 6, 1 / 3, 1.0)
"""Shares of the budget at which samples are scored by default."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for."""

    out: Path
    data: str
    settings: tuple[str, ...]
    seeds: range
    budget: float | None
    """GFLOP for each training image; those of the preset's own training if None."""
    images: int
    points: tuple[float, ...]
    """Shares of the budget at which samples are scored, of which the last is 1."""
    source: str
    threads: int
    calibration: bool


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        print(f"command line: {message}; see --help.", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def parse(words: Sequence[str], description: str) -> Options:
    """The options of a command line.

    Args:
        description: shown by --help.

    Raises:
        UserError: a value cannot be used.
    """
    parser = _Parser(
        prog="benchmarks.quality",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, help="folder of all results")
    parser.add_argument("--data", default="digits", help=f"the images: {' or '.join(DATA)}")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="names, separated by commas; all by default")
    parser.add_argument("--seeds", type=whole_number, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=whole_number, default=0, help="the first of them")
    parser.add_argument(
        "--budget", type=float, help="GFLOP for each training image; by default those of the preset's own training"
    )
    parser.add_argument("--images", type=whole_number, default=1024, help="samples that are scored at each point")
    parser.add_argument("--only-at-the-end", action="store_true", help="score no samples on the way")
    parser.add_argument("--source", default=DEBIAN_FOLDER, help="folder of Fashion-MNIST's files")
    parser.add_argument("--threads", type=whole_number, default=1, help="of this process")
    parser.add_argument("--calibration", action="store_true", help="train on Gaussian images instead")
    given = parser.parse_args(words)
    names = tuple(dict.fromkeys(name for name in given.settings.split(",") if name))
    known = [name for name, setting in SETTINGS.items() if setting.method == "energy" or not given.calibration]
    if given.calibration and given.settings == ",".join(SETTINGS):
        names = tuple(known)
    rules: list[Rule] = [
        ("--data", given.data, f"one of {', '.join(DATA)}", given.data in DATA),
        ("--settings", given.settings, f"some of {', '.join(known)}", bool(names) and set(names) <= set(known)),
        ("--seeds", given.seeds, "at least 1", given.seeds >= 1),
        ("--first-seed", given.first_seed, "at least 0", given.first_seed >= 0),
        (
            "--budget",
            given.budget,
            "a positive number",
            given.budget is None or (given.budget > 0 and math.isfinite(given.budget)),
        ),
        ("--images", given.images, f"at least {_FEWEST_IMAGES}", given.images >= _FEWEST_IMAGES),
        ("--threads", given.threads, "at least 1", given.threads >= 1),
    ]
    refuse_broken(rules)
    return Options(
        out=local_of(given.out, "--out"),
        data=given.data,
        settings=names,
        seeds=range(given.first_seed, given.first_seed + given.seeds),
        budget=given.budget,
        images=given.images,
        points=POINTS[-1:] if given.only_at_the_end else POINTS,
        source=given.source,
        threads=given.threads,
        calibration=given.calibration,
    )
