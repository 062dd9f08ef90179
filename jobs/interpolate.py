"""Draw images between pairs of generated ones: ``python jobs/interpolate.py --help``."""

from __future__ import annotations

import sys

from drl_dist.jobs.common.options import door, parse_options
from drl_dist.jobs.edit.options import InterpolateOptions, check_interpolate


def main() -> int:
    """The command."""
    options = parse_options(
        InterpolateOptions,
        InterpolateOptions(),
        sys.argv[1:],
        description="Draw rows of images that lead from one generated image to another.",
    )
    check_interpolate(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.jobs.edit.driver import interpolate_run

    return interpolate_run(options)


if __name__ == "__main__":
    door(main)
