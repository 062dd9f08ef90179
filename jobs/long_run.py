"""Run long chains of a trained model and see whether images stay images: ``python jobs/long_run.py --help``."""

from __future__ import annotations

import sys

from drl_dist.analysis.long_run_options import LongRunOptions, check_options
from drl_dist.cli import door, parse_options
from drl_dist.stopping import stop_on_signals


def main() -> int:
    """The command."""
    options = parse_options(
        LongRunOptions,
        LongRunOptions(),
        sys.argv[1:],
        description="Long-run chains of a trained model: step sizes, images of several chain lengths, diagnostics; "
        "the same command resumes.",
    )
    check_options(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.analysis.long_run_driver import long_run

    stop_on_signals()
    return long_run(options)


if __name__ == "__main__":
    door(main)
