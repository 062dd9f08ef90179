"""The likelihood job: check everything, adapt step sizes, run the missing tasks, then report, picture and tracking."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.amounts import counted
from drl_dist.common.progress import progress
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.subset import check_count
from drl_dist.jobs.common.actor_pool import WorkerPool
from drl_dist.jobs.common.cluster import check_capacity, cluster
from drl_dist.jobs.common.device import device_name
from drl_dist.jobs.common.output.job_records import digest_of
from drl_dist.jobs.common.output.report import report_bytes
from drl_dist.jobs.common.prometheus import job_exported
from drl_dist.jobs.common.step_sizes import STEP_SIZES_NAME, check_leapfrogs, read_step_sizes
from drl_dist.jobs.likelihood.options import LikelihoodOptions
from drl_dist.jobs.likelihood.output import (
    FIGURE_NAME,
    REPORT_NAME,
    LikelihoodOutput,
    as_json,
    concatenated,
    figure,
    report_lines,
)
from drl_dist.jobs.likelihood.task import (
    LikelihoodRequest,
    LikelihoodTasks,
    StepSizeTasks,
    Task,
    TaskResult,
    num_adapted,
)
from drl_dist.library.stored import TrainedModel, load_model
from drl_dist.likelihood.report import Report, level_metrics, report, summary, unknown_first, whole_metrics
from drl_dist.likelihood.trust import model_warnings
from drl_dist.mcmc.adaptation import StepSizes
from drl_dist.tracking.job_runs import JobRun, job_run_name, log_or_warn


def likelihood_run(options: LikelihoodOptions) -> int:
    """Estimate log Z and bits per dimension, or what an earlier start has left of it; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.likelihood.options.check_options`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    model = load_model(options.model, options.tracking_uri, options.allow_code)
    num_levels = model.experiment.diffusion.num_levels
    index = open_index(options.data)
    index.check_model(resolution=model.experiment.model.resolution, channels=model.experiment.model.channels)
    check_count(index, max(2, options.num_images or 2), what="images", option="--num-images")
    given = None
    if options.schedule is not None:
        given = read_step_sizes(options.schedule, model.ema_sha256, num_levels, "marginal")
        check_leapfrogs(given, options.num_leapfrog_steps, options.schedule)
    request = likelihood_request(options, model, index, given)
    output = LikelihoodOutput(options.out, request, num_levels)
    finished = output.finished_report()
    # A report that was to be logged and is not was written while the server was away; its records are kept.
    if finished is not None and (model.version is None or finished.get("mlflow_run", "") is not None):
        output.clean_up()
        print(f"{options.out} already holds this likelihood, in {REPORT_NAME}; nothing to do", flush=True)
        return 0
    tasks, schedule, results = request.tasks(), output.schedule(), output.finished()
    missing = [number for number in range(len(tasks)) if number not in results]
    if missing or schedule is None:
        with cluster():
            check_capacity(options.num_workers, cpus=options.cpus_per_worker, gpus=int(options.use_gpu))
            output.begin()
            with job_exported(options.out):
                schedule = schedule or given or _adapt(options, model, request)
                output.write_step_sizes(schedule)
                _make(options, model, index, request, schedule, output, results, missing)
    _finish(options, model, index, request, output, tasks, results)
    return 0


def likelihood_request(
    options: LikelihoodOptions, model: TrainedModel, index: ShardIndex, given: StepSizes | None
) -> LikelihoodRequest:
    """All that determines the numbers."""
    return LikelihoodRequest(
        preset=model.experiment.preset,
        ema_sha256=model.ema_sha256,
        config_sha256=model.config_sha256,
        data_fingerprint=index.fingerprint,
        num_images=options.num_images or index.num_samples,
        num_chains=options.num_chains,
        upper_from=options.upper_from,
        chain_lengths=options.chain_lengths,
        seed=options.seed,
        num_leapfrog_steps=options.num_leapfrog_steps,
        batch_size=options.batch_size,
        precision=options.precision,
        device=device_name(options.use_gpu),
        threads=options.cpus_per_worker,
        adapt=options.adapt if given is None else None,
        schedule_sha256=None if given is None else digest_of(dataclasses.asdict(given)),
    )


def _adapt(options: LikelihoodOptions, model: TrainedModel, request: LikelihoodRequest) -> StepSizes:
    """The step sizes, found by one worker."""
    config, count = options.adapt, num_adapted(model.experiment)
    print(
        f"adapting the step sizes of {counted(count, 'level')} on {counted(config.num_chains, 'chain')} x "
        f"{counted(config.num_steps, 'step')} to "
        f"acceptance rates in [{config.lowest_rate:g}, {config.highest_rate:g}]",
        flush=True,
    )
    pool = WorkerPool(
        1,
        cpus=options.cpus_per_worker,
        gpus=int(options.use_gpu),
        new_runner=StepSizeTasks,
        arguments=(model.experiment, model.ema, request),
    )
    with progress("adapting", count, 0, "levels") as advance:
        [(_, schedule)] = pool.run([0], advance)
    print(f"step sizes are in {options.out}/{STEP_SIZES_NAME}; --schedule {options.out} uses them again", flush=True)
    return schedule


def _make(
    options: LikelihoodOptions,
    model: TrainedModel,
    index: ShardIndex,
    request: LikelihoodRequest,
    schedule: StepSizes,
    output: LikelihoodOutput,
    results: dict[int, TaskResult],
    missing: Sequence[int],
) -> None:
    tasks, num_levels = request.tasks(), model.experiment.diffusion.num_levels
    items = [task.num_items(num_levels) for task in tasks]
    print(
        f"{'resuming' if results else 'estimating'} log Z and the likelihood of "
        f"{counted(request.num_images, 'image')} under {options.model} (step {model.step}) in {options.out}: "
        f"{len(missing)} of {counted(len(tasks), 'task')} to make on "
        f"{counted(options.num_workers, 'worker')}",
        flush=True,
    )
    pool = WorkerPool(
        options.num_workers,
        cpus=options.cpus_per_worker,
        gpus=int(options.use_gpu),
        new_runner=LikelihoodTasks,
        arguments=(model.experiment, model.ema, request, schedule, index),
    )
    with progress("likelihood", sum(items), sum(items[number] for number in results), "chain steps") as advance:
        for number, result in pool.run(missing, advance):
            output.keep(number, result)
            results[number] = result


def _finish(
    options: LikelihoodOptions,
    model: TrainedModel,
    index: ShardIndex,
    request: LikelihoodRequest,
    output: LikelihoodOutput,
    tasks: Sequence[Task],
    results: Mapping[int, TaskResult],
) -> None:
    groups: dict[tuple[str, int], list[TaskResult]] = {}
    for number, task in enumerate(tasks):
        groups.setdefault((task.kind, task.num_bridges), []).append(results[number])
    arrays = {key: concatenated(parts) for key, parts in groups.items()}
    tensors = {
        key: {name: torch.from_numpy(value.copy()) for name, value in part.items()} for key, part in arrays.items()
    }
    ladder = build_ladder(model.experiment.diffusion)
    images = tensors["images", 0]
    found = report(
        images["at_data"],
        images["at_x_0"],
        {
            length: (tensors["down", length], tensors["up", length], tensors.get(("up_from_draws", length)))
            for length in request.chain_lengths
        },
        build_levels(model.experiment, ladder),
        ladder,
        model.experiment.model.channels * model.experiment.model.resolution**2,
        model_warnings(model.experiment),
    )
    picture = figure(
        found,
        f"log Z over the number of chains: {options.model}, step {model.step}, seed {request.seed}, "
        f"{counted(request.num_images, 'image')} of {index.name} {index.split}",
    )
    output.write_weights(
        {
            (f"{kind}_{length}/{name}" if length else f"{kind}/{name}"): value
            for (kind, length), part in arrays.items()
            for name, value in part.items()
        }
    )
    output.write_figure(picture)
    origin = _origin(options, model, index, results)
    for line in report_lines(found, request.num_images):
        print(line, flush=True)
    if model.version is not None:
        origin["mlflow_run"] = _log(options, model, request, output, found, picture)
    # Without its records a later start could not log what could not be logged.
    output.finish(
        {"summary": summary(found), **origin, **as_json(found)}, keep_records=origin.get("mlflow_run", "") is None
    )
    print(f"{REPORT_NAME}, {FIGURE_NAME} and the weights are in {options.out}", flush=True)


def _origin(
    options: LikelihoodOptions, model: TrainedModel, index: ShardIndex, results: Mapping[int, TaskResult]
) -> dict[str, Any]:
    version = model.version
    return {
        "model": f"models:/{version.name}/{version.version}" if version else options.model,
        "step": model.step,
        "data": {"url": index.url, "name": index.name, "split": index.split},
        "data_scale": "x = (grey level + u - 128) / 127.5, u uniform in (0, 1)",
        "devices": sorted({result.device for result in results.values()}),
        "worker_seconds": round(sum(result.seconds for result in results.values()), 1),
    }


def _log(
    options: LikelihoodOptions,
    model: TrainedModel,
    request: LikelihoodRequest,
    output: LikelihoodOutput,
    found: Report,
    picture: bytes,
) -> str | None:
    """Log to the experiment of the model: numbers of the whole at the model's step, those of levels with the level as
    their step. The run's id, None if the server does not take it."""
    assert model.version is not None
    whole = whole_metrics(found)
    metrics = [(name, value, model.version.step) for name, value in whole.items()]
    run = JobRun(
        kind="likelihood",
        version=model.version,
        name=job_run_name("likelihood", model.version.name, f"{request.digest} {output.url}"),
        params=request.fields,
        tags={"data_url": options.data, "output_url": output.url},
        metrics=[*metrics, *((name, value, level) for name, level, value in level_metrics(found))],
        files={FIGURE_NAME: picture, REPORT_NAME: report_bytes(as_json(found))},
        version_tags={
            name: unknown_first(found, repr(whole[f"likelihood/{name}"]))
            for name in ("bits_per_dim_lower", "bits_per_dim_upper")
        },
        description=summary(found),
    )
    return log_or_warn(options.tracking_uri, run, what="the likelihood is", later="The same command logs it later.")
