"""The request of a long-run job: everything that determines its results, and nothing else."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import INDEX_NAME
from drl_dist.jobs.common.device import device_name
from drl_dist.jobs.common.output.job_folder import JobFolder
from drl_dist.jobs.common.output.job_records import as_json, digest_of
from drl_dist.jobs.common.step_sizes import STEP_SIZES_NAME
from drl_dist.jobs.long_run.options import LongRunOptions
from drl_dist.jobs.long_run.output import (
    COMPARISON_NAME,
    DIAGNOSTICS_NAME,
    FIGURE_NAME,
    SPLIT,
    shard_names,
    shards_folder,
)
from drl_dist.jobs.long_run.progress import record_files, record_names
from drl_dist.library.stored import TrainedModel
from drl_dist.mcmc.adaptation import StepSizes
from drl_dist.mcmc.kernels import KERNELS, adapted_with
from drl_dist.mcmc.settings import Start

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
    options: LongRunOptions, model: TrainedModel, start: Start, schedule: StepSizes | None
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


def open_folder(options: LongRunOptions) -> JobFolder:
    """The job's output folder, of which nothing is read yet."""
    return JobFolder(
        options.out,
        job=JOB,
        result=DIAGNOSTICS_NAME,
        written=[*map(re.escape, _fixed_files(options)), r"samples_\d+\.png", r"stages_\d+\.png"],
        records=record_files(),
        below={shards_folder(length): [rf".*-{SPLIT}-\d{{5,}}\.tar"] for length in options.chain_lengths},
    )


def clean_up(folder: JobFolder, request: Mapping[str, Any], options: LongRunOptions) -> None:
    """Remove the records of a request that is done, and what a killed writer of its files left."""
    pictures = [f"{kind}_{length}.png" for kind in ("samples", "stages") for length in options.chain_lengths]
    records = record_names(options.chain_lengths, options.num_batches)
    for length in options.chain_lengths:
        names = shard_names(request["preset"], options.num_images)
        Folder(joined(folder.url, shards_folder(length))).remove_parts([*names, INDEX_NAME])
    folder.clean_up(request, records=records, files=[*_fixed_files(options), *pictures])


def _fixed_files(options: LongRunOptions) -> list[str]:
    return [FIGURE_NAME, COMPARISON_NAME, *([STEP_SIZES_NAME] if options.schedule is None else [])]
