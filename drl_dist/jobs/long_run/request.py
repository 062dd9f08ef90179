"""All that determines what a long-run job makes, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

from drl_dist.jobs.common.device import device_name
from drl_dist.jobs.common.job_folder import as_json, digest_of
from drl_dist.jobs.common.model import TrainedModel
from drl_dist.jobs.common.step_sizes import SCHEDULE_NAME
from drl_dist.jobs.long_run.options import LongRunOptions
from drl_dist.jobs.long_run.output import COMPARISON_NAME, FIGURE_NAME, SPLIT, shards_folder
from drl_dist.mcmc.adaptation import StepSizeSchedule
from drl_dist.mcmc.kernels import KERNELS, adapted_with
from drl_dist.sampling.long_run import Start

JOB = "drl_dist.long_run"


def known_request(options: LongRunOptions) -> dict[str, Any]:
    """The fields of the request that are known before the model is."""
    is_adapted = options.schedule is None
    row = KERNELS[options.kernel]
    # Where the step sizes come from another kernel, its options count while they are looked for.
    used = {*row.options, *(adapted_with(options.kernel).options if is_adapted else ())}
    return {
        "kernel": options.kernel,
        "chain_lengths": list(options.chain_lengths),
        "num_images": options.num_images,
        "seed": options.seed,
        "num_leapfrog_steps": options.num_leapfrog_steps if "num_leapfrog_steps" in used else None,
        "max_tree_depth": options.max_tree_depth if "max_tree_depth" in used else None,
        "batch_size": options.batch_size,
        "precision": options.precision,
        "device": device_name(options.use_gpu),
        "threads": options.threads,
        "adapt": dataclasses.asdict(options.adapt) if is_adapted else None,
    }


def whole_request(
    options: LongRunOptions, model: TrainedModel, start: Start, schedule: StepSizeSchedule | None
) -> dict[str, Any]:
    """The whole request.

    Args:
        options: of the job.
        model: whose chains they are.
        start: where the chains of a level begin.
        schedule: the step sizes that are given, None if they are adapted.
    """
    return known_request(options) | {
        "preset": model.experiment.preset,
        "step": model.step,
        "ema_sha256": model.ema_sha256,
        "config_sha256": model.config_sha256,
        "start": start,
        "schedule_sha256": None if schedule is None else digest_of(as_json(dataclasses.asdict(schedule))),
    }


def written_files(options: LongRunOptions) -> list[str]:
    """Regular expressions of the names of what the job writes, beside its folders of shards."""
    names = [FIGURE_NAME, COMPARISON_NAME, *([SCHEDULE_NAME] if options.schedule is None else [])]
    return [*(name.replace(".", r"\.") for name in names), r"samples_\d+\.png", r"stages_\d+\.png"]


def written_shards(options: LongRunOptions) -> dict[str, list[str]]:
    """The names of its folders of shards, and regular expressions of the names of the shards."""
    return {shards_folder(length): [rf".*-{SPLIT}-\d{{5,}}\.tar"] for length in options.chain_lengths}
