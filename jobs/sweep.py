"""Sweep over hyperparameters on a Ray cluster: ``python jobs/sweep.py --help``."""

from __future__ import annotations

import json
import sys

from drl_dist.common.program import stop_on_signals
from drl_dist.jobs.common.options import door
from drl_dist.jobs.sweep.entry import parse_sweep


def main() -> int:
    """The command."""
    plan, is_dry_run = parse_sweep(sys.argv[1:])
    if is_dry_run:
        print(json.dumps(plan.as_json(), indent=2, allow_nan=False))
        return 0
    # Heavy imports wait until the options are understood.
    from drl_dist.jobs.sweep.driver import sweep_run

    stop_on_signals()
    return sweep_run(plan)


if __name__ == "__main__":
    door(main)
