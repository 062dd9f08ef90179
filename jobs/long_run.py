"""Run long chains of a trained model and see whether images stay images: ``python jobs/long_run.py --help``."""

from __future__ import annotations

import sys

from drl_dist.analysis.long_run_options import LongRunOptions, check_options
from drl_dist.cli import door, parse_options


def main() -> int:
    """The command."""
    options = parse_options(
        LongRunOptions,
        LongRunOptions(),
        sys.argv[1:],
        description="Long-run chains of a trained model: step sizes, images of several chain lengths, diagnostics.",
    )
    check_options(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.analysis.long_run_driver import long_run

    return long_run(options)


if __name__ == "__main__":
    door(main)
