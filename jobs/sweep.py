"""Sweep over hyperparameters on a Ray cluster: ``python jobs/sweep.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_command
from drl_dist.jobs.sweep.options import SweepPlan, parse_sweep

if __name__ == "__main__":
    run_command(parse_sweep, "drl_dist.jobs.sweep.driver:sweep_run", as_json=SweepPlan.as_json)
