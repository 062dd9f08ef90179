"""Generate images from a trained model on Ray actors: ``python jobs/sample.py --help``."""

from __future__ import annotations

import sys

from drl_dist.common.program import stop_on_signals
from drl_dist.jobs.common.options import door, parse_options
from drl_dist.jobs.sample.options import SampleOptions, check_options


def main() -> int:
    """The command."""
    options = parse_options(
        SampleOptions,
        SampleOptions(),
        sys.argv[1:],
        description="Generate images from a trained model; the same command resumes.",
    )
    check_options(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.jobs.sample.driver import sample_run

    stop_on_signals()
    return sample_run(options)


if __name__ == "__main__":
    door(main)
