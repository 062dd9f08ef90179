"""The sampling job: check everything, run the missing tasks, then manifest, pictures and index."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from drl_dist.common.amounts import counted
from drl_dist.common.progress import progress
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.manifest import MANIFEST_NAME
from drl_dist.jobs.common.actor_pool import WorkerPool
from drl_dist.jobs.common.chains import with_chains
from drl_dist.jobs.common.cluster import check_capacity, cluster
from drl_dist.jobs.common.device import device_name
from drl_dist.jobs.common.labels import read_label_data
from drl_dist.jobs.common.prometheus import job_exported
from drl_dist.jobs.sample.options import SampleOptions
from drl_dist.jobs.sample.output import DEVICES_BETWEEN, GRID_NAME, SampleOutput
from drl_dist.jobs.sample.task import PROGRESSION_NAME, SampleRequest, SampleTasks, TaskRecord
from drl_dist.library.stored import TrainedModel, load_model
from drl_dist.tracking.job_runs import PICTURE_NAME, JobRun, is_logged, job_run_name, log_or_warn

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment


def sample_run(options: SampleOptions) -> int:
    """Generate images, or those that an earlier start has left to do; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.sample.options.check_options`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    model = load_model(options.model, options.tracking_uri, options.allow_code)
    experiment = model.experiment
    real = _open_real(options, experiment) if options.labels == "data" else None
    request = sample_request(options, model, real)
    request.wanted(experiment.condition)
    output = SampleOutput(options.out, experiment, request)
    if output.is_complete():
        output.clean_up()
        _log_late(options, model, request, output)
        print(f"{options.out} already holds {counted(request.num_images, 'image')}; nothing to do", flush=True)
        return 0
    real = real or _open_real(options, experiment)
    records = output.finished()
    missing = [task for task in range(request.num_tasks) if task not in records]
    if missing:
        _make(options, model, request, output, records, missing)
    output.check_shards(records)
    output.exchange(records)
    _finish(options, model, request, output, records, real)
    return 0


def _open_real(options: SampleOptions, experiment: Experiment) -> ShardIndex | None:
    if not options.real:
        return None
    real = open_index(options.real)
    real.check_model(resolution=experiment.model.resolution, channels=experiment.model.channels)
    return real


def sample_request(options: SampleOptions, model: TrainedModel, real: ShardIndex | None = None) -> SampleRequest:
    """All that determines the images.

    Args:
        real: the data of `--real`, of whose labels images can have random ones.

    Raises:
        UserError: these have other labels than the model, or cannot be read.
    """
    return SampleRequest(
        preset=model.experiment.preset,
        ema_sha256=model.ema_sha256,
        config_sha256=model.config_sha256,
        num_images=options.num_images,
        seed=options.seed,
        noise_scale=with_chains(model.experiment, options).mcmc.sampling_noise_scale,
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        device=device_name(options.use_gpu),
        threads=options.cpus_per_worker,
        precision=options.precision,
        num_chain_steps=options.num_chain_steps,
        bound_fraction=options.bound_fraction,
        chain_kernel=options.chain_kernel,
        label=options.label,
        labels=options.labels,
        compose=options.compose,
        guidance=options.guidance,
        label_data=read_label_data(options, model.experiment.condition, real),
    )


def _make(
    options: SampleOptions,
    model: TrainedModel,
    request: SampleRequest,
    output: SampleOutput,
    records: dict[int, TaskRecord],
    missing: list[int],
) -> None:
    done = sum(len(request.images_of(task)) for task in records)
    with cluster():
        check_capacity(options.num_workers, cpus=options.cpus_per_worker, gpus=int(options.use_gpu))
        output.begin(records)
        print(
            f"{'resuming' if records else 'sampling'} {counted(request.num_images, 'image')} of {options.model} (step "
            f"{model.step}) to {options.out}: {len(missing)} of {counted(request.num_tasks, 'shard')} to make on "
            f"{counted(options.num_workers, 'worker')}",
            flush=True,
        )
        pool = WorkerPool(
            options.num_workers,
            cpus=options.cpus_per_worker,
            gpus=int(options.use_gpu),
            new_runner=SampleTasks,
            arguments=(
                model.experiment,
                model.ema,
                request,
                options.out,
                output.aside,
                output.replaced,
                _caption(options, model),
            ),
        )
        began, before = time.monotonic(), done
        with (
            job_exported(options.out) as exporter,
            output.kept_behind() as keep,
            closing(pool),
            progress("sampling", request.num_images, done, "images") as advance,
        ):
            for task, record in pool.run(missing, advance):
                keep(task, record)
                records[task] = record
                done += len(request.images_of(task))
                rate = (done - before) / (time.monotonic() - began)
                exporter.set(sampled_images=done, sampling_images_per_second=rate)


def _finish(
    options: SampleOptions,
    model: TrainedModel,
    request: SampleRequest,
    output: SampleOutput,
    records: dict[int, TaskRecord],
    real: ShardIndex | None,
) -> None:
    version = model.version
    origin = {
        "model": f"models:/{version.name}/{version.version}" if version else options.model,
        "model_name": version.name if version else None,
        "model_version": version.version if version else None,
        "step": model.step,
        "devices": sorted({name for record in records.values() for name in record.device.split(DEVICES_BETWEEN)}),
    }
    output.write_manifest(records, origin)
    index = output.index(records)
    caption = f"{_caption(options, model)}, {counted(index.num_samples, 'image')}{_asked(request)}"
    _log(options, model, request, output, index, output.write_grid(index, real, caption))
    output.finish(index)
    print(
        f"{counted(index.num_samples, 'image')} in {counted(len(index.shards), 'shard')} below {output.url}, "
        f"with {MANIFEST_NAME}, {GRID_NAME} and {PROGRESSION_NAME}",
        flush=True,
    )


def _caption(options: SampleOptions, model: TrainedModel) -> str:
    return f"{options.model}, step {model.step}, seed {options.seed}"


def _asked(request: SampleRequest) -> str:
    """What the images were asked to show, for captions."""
    given = {"labels": request.label or request.labels, "composed": request.compose, "guidance": request.guidance}
    return "".join(f", {name} {value}" for name, value in given.items() if value is not None)


def _run_name(model: TrainedModel, request: SampleRequest, output: SampleOutput) -> str:
    assert model.version is not None
    return job_run_name("samples", model.version.name, f"{request.digest} {output.url}")


def _log(
    options: SampleOptions,
    model: TrainedModel,
    request: SampleRequest,
    output: SampleOutput,
    index: ShardIndex,
    grid: bytes,
) -> None:
    """Log the images of a registered model."""
    if model.version is None:
        return
    run = JobRun(
        kind="samples",
        version=model.version,
        name=_run_name(model, request, output),
        params=request.to_record() | {"fingerprint": index.fingerprint},
        tags={"output_url": output.url},
        files={PICTURE_NAME: grid},
        version_tags={"url": output.url},
    )
    log_or_warn(options.tracking_uri, run, what="the images are", later="The same command logs them later.")


def _log_late(options: SampleOptions, model: TrainedModel, request: SampleRequest, output: SampleOutput) -> None:
    """Log the images of a complete folder, if the server was away when they were made."""
    if model.version is None:
        return
    if not is_logged(options.tracking_uri, model.version, f"samples.{_run_name(model, request, output)}.url"):
        grid = Folder(output.url).read(GRID_NAME)
        _log(options, model, request, output, open_index(output.url), grid)
