"""The training job: check everything, start Ray Train, keep the status of the tracked run correct."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ray.train import CheckpointConfig, ControllerError, FailureConfig, LoggingConfig, ScalingConfig, UserCallback
from ray.train import RunConfig as RayRunConfig

from drl_dist.checkpoints.retention import remove_orphaned
from drl_dist.checkpoints.rollbacks import read_rollbacks
from drl_dist.checkpoints.run_config import write_run_config
from drl_dist.checkpoints.run_record import RECORD, check_record, continued, write_record
from drl_dist.checkpoints.run_status import refuse_at_work
from drl_dist.checkpoints.step_costs import write_step_costs
from drl_dist.checkpoints.storage import StoredCheckpoint, checkpoint_name, newest_checkpoint
from drl_dist.checkpoints.verify import newest_to_resume
from drl_dist.checkpoints.warm_start import starting_point
from drl_dist.common.amounts import counted
from drl_dist.common.imports import no_collection
from drl_dist.common.places import joined
from drl_dist.common.program import Stopped
from drl_dist.common.waiting import Waiting
from drl_dist.config.import_paths import import_paths
from drl_dist.config.tree import NO_SERVER, RunConfig
from drl_dist.data.filesystem import check_reachable
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.labels import labelled_by
from drl_dist.data.pixels.scales import scaled_to
from drl_dist.evaluation.feature_spec import parse_features
from drl_dist.jobs.common.cluster import check_capacity, cluster, in_background, is_loopback
from drl_dist.jobs.common.prometheus import Exporter, job_exported
from drl_dist.jobs.train.faults.restarts import (
    FINAL_ERRORS,
    CheckpointTimes,
    NoProgressError,
    OutdatedListError,
    RestartPolicy,
)
from drl_dist.jobs.train.first_look import first_look
from drl_dist.jobs.train.group import COLLECTIVE_SECONDS, GroupConfig, Trainer
from drl_dist.jobs.train.model_name import check_model_name
from drl_dist.jobs.train.start import imports_at_start, run_task
from drl_dist.jobs.train.start_up import start_up_told
from drl_dist.jobs.train.stop import KeyInStore, StopFlag, stoppable
from drl_dist.jobs.train.storage import drop_stale_snapshot, ray_filesystem
from drl_dist.jobs.train.task import MakeCallback, WorkerTask
from drl_dist.jobs.train.tracked import open_tracked, run_status_kept, untracked
from drl_dist.tracking.files.events import check_tensorboard
from drl_dist.tracking.server.address import server_uri
from drl_dist.training.guard import DivergedError

CONTROLLER_ENVIRONMENT = {
    # `report` returns, and a dead worker is noticed, at the controller's next look.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A machine that is taken away goes half a minute after its notice.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # It makes every printed line come twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Ranks that are in `report` wait for the others without end by default.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(COLLECTIVE_SECONDS),
}
ELASTIC_ENVIRONMENT = {
    # Just after a machine was lost Ray still counts on it; it looks again when this is over.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
}
_WITHOUT_SERVER = f", or --tracking.uri {NO_SERVER} to have metrics and pictures as files beside the checkpoints"


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that can start."""

    run: RunConfig
    index: ShardIndex
    """Of the data."""
    newest: StoredCheckpoint | None
    """What it resumes from, if that verifies when the workers read it."""

    @property
    def is_complete(self) -> bool:
        """Whether all steps are made."""
        return self.newest is not None and self.newest.step >= self.run.experiment.train.num_steps


@dataclass(frozen=True, kw_only=True)
class ParentJob:
    """What a job that starts, and stops, runs of its own adds to one of them."""

    model_name: str
    """Registered model that the run's checkpoints are versions of."""
    tags: Mapping[str, str]
    """Of the tracked run."""
    controller_callbacks: Sequence[UserCallback]
    """Called in Ray's controller with the run's reports."""
    make_callback: MakeCallback
    """Makes a further callback in each worker."""


def train_run(run: RunConfig, chosen: Collection[str] = ()) -> int:
    """Start or resume a run and stay until it ends.

    Args:
        run: complete and checked; see `drl_dist.config.rules.check_run`.
        chosen: fields that were given explicitly; see `drl_dist.checkpoints.run_record.continued`.

    Returns:
        0 if the run has made all its steps, 1 if it diverged or does not get on.

    Raises:
        UserError: something that the user gave cannot be used.
        Stopped: a signal ended it before all steps were made.
        NoProgressError: workers died again and again without a further checkpoint.
    """
    with Waiting(f"run {run.run_name}") as waiting:
        waiting.begin("reading the index of the data and the list of checkpoints", is_told=False)
        prepared = prepare_run(run, chosen)
    if prepared.is_complete:
        assert prepared.newest is not None
        print(
            f"run {run.run_name} has made its {counted(prepared.newest.step, 'step')}; its last checkpoint is "
            f"{prepared.newest.url} (a larger --train.num-steps continues from there)",
            flush=True,
        )
        return 0
    refuse_at_work(prepared.run.url)
    check_model_name(prepared.run, prepared.index.name)
    try:
        fit_run(prepared)
    except (DivergedError, NoProgressError) as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def prepare_run(run: RunConfig, chosen: Collection[str] = ()) -> PreparedRun:
    """Check everything that can be checked before Ray starts; nothing is written.

    Args:
        run, chosen: as for `train_run`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    experiment = run.experiment
    # Where damage is tolerated, the workers find it.
    index = open_index(run.data, check_shards=run.loader.on_damage == "strict")
    index.check_model(resolution=experiment.model.resolution, channels=experiment.model.channels)
    # Before the run is compared with its record, which holds numbers.
    experiment = scaled_to(labelled_by(experiment, index), lambda: index.statistics, run.data)
    run = dataclasses.replace(run, experiment=experiment)
    if import_paths(experiment) or not experiment.model.is_built_in:
        # Only here does the driver need torch: what is wrong with the user's own code is said before Ray starts.
        from drl_dist.training.own_parts import check_own_parts

        check_own_parts(run.experiment, run.engine)
    if run.tracking.score_every_steps is not None:
        from drl_dist.data.subset import check_count

        parse_features(run.tracking.score_features)
        check_count(index, run.tracking.score_num_images, what="data", option="--tracking.score-num-images")
    check_reachable(run.url)
    run = continued(run, chosen)
    experiment = run.experiment
    check_record(run.url, experiment, index.fingerprint, run.start_from)
    if run.tracking.tensorboard:
        check_tensorboard()
    if run.tracking.uri == NO_SERVER:
        from drl_dist.tracking.files.run_files import refuse_other_files

        refuse_other_files(run.url, RECORD)
    newest = newest_to_resume(run.url, experiment.train.num_steps)
    if run.start_from is not None and newest is None:
        run = dataclasses.replace(run, start_from=starting_point(run.start_from, experiment, index.fingerprint))
    return PreparedRun(run=run, index=index, newest=newest)


def fit_run(prepared: PreparedRun, parent: ParentJob | None = None) -> None:
    """Make the steps that are left.

    Args:
        parent: of a run that another job starts, for instance a trial of a sweep.

    Raises:
        UserError: the MLflow server or the cluster does not answer, or a worker found something that cannot be used.
        DivergedError: the run diverged.
        Stopped: a signal ended it before all steps were made; not where another job has started it.
        NoProgressError: workers died again and again without a further checkpoint.
    """
    run, experiment, started = prepared.run, prepared.run.experiment, time.time()
    newest, fingerprint = prepared.newest, prepared.index.fingerprint
    # Workers may not have the variable that names the server.
    uri = NO_SERVER if run.tracking.uri == NO_SERVER else server_uri(run.tracking.uri, instead=_WITHOUT_SERVER)
    run = dataclasses.replace(run, tracking=dataclasses.replace(run.tracking, uri=uri))
    model_name = parent.model_name if parent else run.registered_model
    # In the middle of another job the server may be away for a while, which must not cost a run.
    server = in_background(lambda: None if uri == NO_SERVER else _ask_server(uri, is_asked=parent is None))
    # The workers have variables of their own: Ray Train sets some.
    with cluster(prestart=False), Waiting(f"run {run.run_name}") as waiting:
        waiting.begin("looking for the MLflow server, the cluster's room and the run", is_told=False)
        server.result()
        from drl_dist.jobs.train.faults.rollback import fit_with_rollbacks

        check_capacity(run.min_workers or run.num_workers, cpus=run.cpus_per_worker, gpus=int(run.use_gpu))
        costs = first_look(run, waiting)
        write_record(run.url, experiment, fingerprint, run.start_from)
        if costs:
            write_step_costs(run.url, costs)
        write_run_config(dataclasses.replace(prepared.run, model_name=model_name), without_ray=False)
        _drop_stale_list(run.url, newest)
        no_server = uri == NO_SERVER
        tracked = untracked(run) if no_server else open_tracked(run, prepared.index, parent.tags if parent else None)
        page = tracked.page
        print(
            f"run {run.run_name}: {_beginning(run, newest)}, "
            f"{_team(run)}, checkpoints in {run.url}, metrics and samples {page}",
            flush=True,
        )
        waiting.end()
        task = WorkerTask(
            arrival=KeyInStore("arrival"),
            run=run,
            fingerprint=fingerprint,
            tracking_run=tracked.run_id,
            access=tracked.access,
            model_name=model_name,
            started=started,
            first_step=newest.step if newest else 0,
            num_rollbacks=len(read_rollbacks(run.url)),
            make_callback=parent.make_callback if parent else None,
            stop_flag=None if parent else StopFlag(),
        )
        # The other job may end it from outside at any time, as a sweep does with a trial that is not worth continuing.
        exported = Exporter(run.run_name) if parent else job_exported(run.run_name)
        with exported as exporter, run_status_kept(run, tracked, model_name):
            callbacks = parent.controller_callbacks if parent else ()
            if tracked.run_id:
                exporter.set(mlflow_told_timestamp_seconds=time.time())
            fit_with_rollbacks(task, lambda task: _fit(task, exporter, callbacks))
        for stored in remove_orphaned(run.url, run.checkpoint.keep, newest_checkpoint(run.url)):
            print(f"removing {stored.url}, which a kill had left behind", flush=True)
    print(
        f"run {run.run_name} has made its {counted(experiment.train.num_steps, 'step')}; checkpoints in {run.url}, "
        f"{'' if uri == NO_SERVER else f'model {model_name}, '}metrics and samples {page}",
        flush=True,
    )


def _ask_server(uri: str, *, is_asked: bool) -> None:
    """Import MLflow, which takes as long as a Ray to start, and see that the server answers.

    Raises:
        UserError: it does not.
    """
    with no_collection():
        from drl_dist.tracking.server.client import connect

    if is_asked:
        connect(uri)


def _drop_stale_list(run_url: str, newest: StoredCheckpoint | None) -> None:
    if drop_stale_snapshot(run_url, newest):
        print("Ray Train's list of checkpoints was torn or outdated and is rebuilt", flush=True)


def _team(run: RunConfig) -> str:
    wanted = counted(run.num_workers, "worker")
    return wanted if run.min_workers is None else f"{run.min_workers} to {wanted}"


def _beginning(run: RunConfig, newest: StoredCheckpoint | None) -> str:
    if newest:
        return f"resuming after step {newest.step}"
    return f"starting from {run.start_from}" if run.start_from else "starting"


def _fit(task: WorkerTask, exporter: Exporter, callbacks: Sequence[UserCallback]) -> None:
    """Run Ray Train to its end, from its beginning again where its list of checkpoints turns out to be outdated.

    Raises:
        Stopped: a signal ended it before all steps were made.
    """
    while True:
        try:
            return _fit_once(task, exporter, callbacks)
        except OutdatedListError as error:
            run_url, step = task.run.url, error.step
            _drop_stale_list(
                run_url, None if step is None else StoredCheckpoint(joined(run_url, checkpoint_name(step)), step)
            )


def _fit_once(task: WorkerTask, exporter: Exporter, callbacks: Sequence[UserCallback]) -> None:
    """Run Ray Train; what ends it for good comes out as it was raised in the worker.

    Raises:
        OutdatedListError: its list names a later checkpoint than the newest that verifies.
        Stopped: a signal ended it before all steps were made.
    """
    run = task.run
    # Without workers that report, these grow old.
    exporter.set(workers=0, step_timestamp_seconds=time.time(), checkpoint_timestamp_seconds=time.time())
    for name, value in (CONTROLLER_ENVIRONMENT | (ELASTIC_ENVIRONMENT if run.min_workers else {})).items():
        os.environ.setdefault(name, value)
    if is_loopback():
        # A machine of our own is not taken away with notice.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    filesystem, path = ray_filesystem(run.storage)
    restart = KeyInStore("restart")
    imports = imports_at_start() if run.spare_processes and task.make_callback is None else {}
    trainer = Trainer(
        lambda: run_task(task),
        # The job that started this run continues.
        is_nested=task.make_callback is not None,
        can_grow=not is_loopback(),
        backend_config=GroupConfig(),
        scaling_config=ScalingConfig(
            num_workers=run.num_workers if run.min_workers is None else (run.min_workers, run.num_workers),
            # `ScaleUp` does it at checkpoints, when no step is lost by it.
            elastic_resize_monitor_interval_s=math.inf,
            use_gpu=run.use_gpu,
            resources_per_worker={"CPU": run.cpus_per_worker} | ({"GPU": 1} if run.use_gpu else {}),
        ),
        run_config=RayRunConfig(
            name=run.run_name,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=run.checkpoint.keep),
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[RestartPolicy(restart), CheckpointTimes(run.run_name), *callbacks],
            # Its console output is what `RestartPolicy` says; its log files hold everything.
            logging_config=LoggingConfig(log_level="CRITICAL"),
            # Otherwise gloo listens on the address of the machine's name.
            worker_runtime_env={"env_vars": imports | ({"GLOO_SOCKET_IFNAME": "lo"} if is_loopback() else {})},
        ),
    )
    try:
        with start_up_told(run, task.arrival, restart):
            if task.stop_flag is None:
                trainer.fit()
                return
            result, cause = stoppable(trainer.fit, task.stop_flag)
    except ControllerError as error:
        if isinstance(error.controller_failure, (*FINAL_ERRORS, NoProgressError, OutdatedListError)):
            raise error.controller_failure from None
        raise
    if cause is None:
        return
    task.stop_flag.remove()
    made = result.return_value
    assert isinstance(made, int), "the first rank returns its steps"
    if made < run.experiment.train.num_steps:
        raise Stopped(cause, f"after step {made}, whose checkpoint is written")
