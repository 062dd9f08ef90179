"""The options of ``jobs/sweep.py``: a training run's, and the sweep's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from drl_dist.common.errors import UserError
from drl_dist.config.presets import SETTINGS, TABLE_6, preset
from drl_dist.config.rules import check_run
from drl_dist.config.tree import Experiment, RunConfig
from drl_dist.jobs.common.options import parse_options
from drl_dist.jobs.sweep.options import SweepOptions, SweepPlan, plan_sweep
from drl_dist.jobs.train.options import ExperimentOptions, TrainOptions, early_option, plain


@dataclass(frozen=True, kw_only=True)
class _SweepRun(TrainOptions):
    # Trials are named after their sweep.
    run_name: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    # Trials are too short to outlive a machine by going on without it.
    min_workers: tyro.conf.Suppress[tyro.conf.Fixed[int | None]] = None
    # A trial that diverges has shown what it was to show.
    max_rollbacks: tyro.conf.Suppress[tyro.conf.Fixed[int]] = 0
    preset: str = ""
    """Row of Table 6, or digits or fashion_mnist: the values that trials start from."""
    sweep: Annotated[SweepOptions, tyro.conf.arg(name="")] = field(default_factory=SweepOptions)


def parse_sweep(argv: Sequence[str]) -> tuple[SweepPlan, bool]:
    """The sweep that a command describes, and whether it is a dry run.

    Raises:
        UserError: an option, a space or a combination of values that no sweep can have.
    """
    names = list(TABLE_6)
    if not any(word == "--preset" or word.startswith("--preset=") or word in ("-h", "--help") for word in argv):
        raise UserError("command line", got="no --preset", expected="one of " + ", ".join(names), remedy="add --preset")
    name, setting = early_option(argv, "--preset", names), early_option(argv, "--setting", list(SETTINGS))
    default = _SweepRun(experiment=plain(ExperimentOptions, preset(name, setting)), preset=name)
    description = "Try hyperparameters as short runs and rank them; the same --sweep-name resumes."
    options = parse_options(_SweepRun, default, argv, description=description)
    base = dataclasses.replace(plain(RunConfig, options), experiment=plain(Experiment, options.experiment))
    check_run(base, complete=False)
    return plan_sweep(base, options.sweep, preset=name, setting=setting), options.dry_run
