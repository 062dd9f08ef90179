"""Draw the curves of a tracked run as a PNG: ``python jobs/curves.py --help``."""

from __future__ import annotations

import sys

from drl_dist.jobs.common.options import door, parse_options
from drl_dist.tracking.curves import CurvesOptions, curves


def main() -> int:
    """The command."""
    return curves(parse_options(CurvesOptions, CurvesOptions(), sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    door(main)
