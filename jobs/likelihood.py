"""Estimate log Z and the bits per dimension of images on Ray actors: ``python jobs/likelihood.py --help``."""

from __future__ import annotations

import sys

from drl_dist.common.program import stop_on_signals
from drl_dist.jobs.common.options import door, parse_options
from drl_dist.jobs.likelihood.options import LikelihoodOptions, check_options


def main() -> int:
    """The command."""
    options = parse_options(
        LikelihoodOptions,
        LikelihoodOptions(),
        sys.argv[1:],
        description="Both bounds of log Z and of the bits per dimension of images; the same command resumes.",
    )
    check_options(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.jobs.likelihood.driver import likelihood_run

    stop_on_signals()
    return likelihood_run(options)


if __name__ == "__main__":
    door(main)
