"""Run long chains of a trained model and see whether images stay images: ``python jobs/long_run.py --help``."""

from __future__ import annotations

import sys

from drl_dist.common.program import stop_on_signals
from drl_dist.jobs.common.options import door, parse_options
from drl_dist.jobs.long_run.options import LongRunOptions, check_options


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
    from drl_dist.jobs.long_run.driver import long_run

    stop_on_signals()
    return long_run(options)


if __name__ == "__main__":
    door(main)
