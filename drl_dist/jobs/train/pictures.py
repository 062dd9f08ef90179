"""The pictures that training shows: sheets whose captions say which run they are of."""

from __future__ import annotations

from drl_dist.common.images import Panel
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.common.output.sheet import sheet_of


def training_sheet(run: RunConfig, step: int, panel: Panel) -> bytes:
    """Images of a step as a PNG file with a caption: run, preset, step, seed."""
    experiment = run.experiment
    steps, seed = f"step {step} of {experiment.train.num_steps}", f"seed {experiment.train.seed}"
    return sheet_of([panel], f"run {run.run_name} ({experiment.preset}), {steps}, {seed}")
