"""Tell other images from a model's own by their log-density: ``python jobs/ood.py --help``."""

from __future__ import annotations

import sys

from drl_dist.common.program import stop_on_signals
from drl_dist.jobs.common.options import door, parse_options
from drl_dist.jobs.ood.options import OodOptions, check_ood


def main() -> int:
    """The command."""
    options = parse_options(
        OodOptions,
        OodOptions(),
        sys.argv[1:],
        description="AUROC between the log-densities f(y_0, t = 0) that a model gives to two sets of images; "
        "the same command resumes.",
    )
    check_ood(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.jobs.ood.driver import ood_run

    stop_on_signals()
    return ood_run(options)


if __name__ == "__main__":
    door(main)
