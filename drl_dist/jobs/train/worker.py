"""What every training worker runs: one DDP rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import ray.train
import ray.train.torch

from drl_dist.checkpoints.rollbacks import noise_seed
from drl_dist.common.batch import BatchSource
from drl_dist.common.errors import UserError
from drl_dist.config.tree import RunConfig
from drl_dist.data.audit import audited
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.stream import ShardStream
from drl_dist.jobs.common.device import prepare_device
from drl_dist.jobs.common.prometheus import Exporter
from drl_dist.jobs.sweep.worker import TrialScores
from drl_dist.jobs.train.callbacks import Checkpoints, build_callbacks
from drl_dist.jobs.train.damage import Damage
from drl_dist.jobs.train.metrics import Clock, Exports
from drl_dist.jobs.train.restore import restore
from drl_dist.jobs.train.stop import StopNote, Wishes
from drl_dist.tracking.access import take_access
from drl_dist.tracking.tracker import Tracker
from drl_dist.training.callbacks import Samples, Scores
from drl_dist.training.loop import train
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from drl_dist.training.watch import DivergenceLimits


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What the driver tells its workers."""

    run: RunConfig
    run_url: str
    """Folder of the run."""
    fingerprint: str
    """Of the data that the driver saw."""
    tracking_run: str
    """Id of the tracked run."""
    access: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Lets workers into the tracking server; see `drl_dist.tracking.access.access`."""
    model_name: str
    """Registered model that checkpoints are versions of."""
    started: float
    """When the job was started, in seconds since 1970."""
    first_step: int
    """Steps that were made then."""
    num_rollbacks: int = 0
    """How often the run has gone back to a checkpoint because it diverged."""
    limits: DivergenceLimits | None = None
    """For a trial of a sweep: when it ends as diverged. It then keeps its curve, and reports each score to Ray."""
    stop_note: StopNote | None
    """Where the driver says that all are to stop."""


def train_worker(task: WorkerTask) -> int:
    """Train this rank from the newest checkpoint that verifies to the last step, or until it is asked to stop.

    Returns:
        the number of steps made, of which a checkpoint is written.

    Raises:
        UserError: data or checkpoint are damaged or not those of this run.
        DivergedError: from the training step.
    """
    run, experiment = task.run, task.run.experiment
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    # What libraries say at this level, about each report and each model version, would bury the progress lines.
    logging.disable(logging.INFO)

    index = _index(task)
    threads = run.engine.threads_per_worker or run.cpus_per_worker
    device = prepare_device(ray.train.torch.get_device(), threads=threads, is_reproducible=False)
    state = TrainState.create(experiment, device)
    restore(state, run, task.run_url, task.fingerprint)
    position = state.step * experiment.train.batch_size
    stream = ShardStream(
        index,
        seed=experiment.train.seed,
        batch_size=experiment.train.batch_size,
        rank=rank,
        world_size=world_size,
        start_position=position,
        horizontal_flip=experiment.train.horizontal_flip,
        loader=run.loader,
    )
    damage = Damage.take_up(run, task.run_url, stream, rank=rank, world_size=world_size, position=position)
    with ExitStack() as stack:
        wishes = stack.enter_context(Wishes(task.stop_note if rank == 0 else None))
        seed = noise_seed(experiment.train.seed, task.num_rollbacks)
        step = TrainStep(state, experiment, run.engine, wishes, seed)
        show, register, log, exports = None, None, None, None
        clock, exporter = Clock(), stack.enter_context(Exporter(run.run_name))
        exporter.set(workers=1)
        if rank == 0:
            take_access(task.access)
            tracker = Tracker(run.tracking.uri, task.tracking_run)
            stack.callback(tracker.close)
            show, log = tracker.log_image, tracker.log_metrics
            register = partial(tracker.register_checkpoint, task.model_name)
            if task.num_rollbacks:
                log(state.step, {"rollbacks": task.num_rollbacks})
            exports = Exports(
                exporter,
                clock,
                started=task.started,
                first_step=task.first_step,
                backlog=lambda: {
                    "spool_unsent_bytes": tracker.unsent_bytes,
                    "mlflow_told_timestamp_seconds": tracker.told_at,
                },
                log=log,
                log_every=run.tracking.log_every_steps,
            )
        tracking = run.tracking
        samples = Samples(
            experiment, run.engine, tracking.sample_every_steps, tracking.num_samples, rank, world_size, show
        )
        trial, scores = None, None
        if task.limits is not None:
            trial = TrialScores.resumed(task.limits, task.run_url, rank, state.step, run.tracking.score_every_steps)
        if tracking.score_every_steps is not None:
            scores = _scores(run, index, state, rank, world_size, log, trial)
        checkpoints = Checkpoints(
            run, task.run_url, task.fingerprint, world_size, register, damage.gather, clock.uploaded
        )
        callbacks = build_callbacks(
            run,
            world_size=world_size,
            log=log,
            exports=exports,
            samples=samples,
            scores=scores,
            trial=trial,
            damage=damage,
            checkpoints=checkpoints,
            clock=clock,
        )
        stack.enter_context(stream)
        if state.step == 0:
            # Show where training began, before there is anything else to see.
            samples.draw(0, state)
        batches = _noted(run, stream, rank, world_size)
        train(step, state, experiment, batches, callbacks, bad_samples=damage.count)
    return state.step


def _index(task: WorkerTask) -> ShardIndex:
    """Of the data that the driver saw."""
    index = open_index(task.run.data, check_shards=False)
    if index.fingerprint != task.fingerprint:
        raise UserError(
            f"data {task.run.data}",
            got=f"fingerprint {index.fingerprint}",
            expected=task.fingerprint,
            remedy="leave the shards as they are while a run reads them",
        )
    return index


def _noted(run: RunConfig, stream: ShardStream, rank: int, world_size: int) -> BatchSource:
    """The stream, in a ledger if the run keeps one."""
    if run.loader.ledger_dir is None:
        return stream
    folder, size = Path(run.loader.ledger_dir) / run.run_name, run.experiment.train.batch_size
    return audited(stream, folder, stream.order, batch_size=size, rank=rank, world_size=world_size)


def _scores(
    run: RunConfig,
    index: ShardIndex,
    state: TrainState,
    rank: int,
    world_size: int,
    log: Callable[[int, dict[str, float]], None] | None,
    trial: TrialScores | None,
) -> Scores:
    """The callback that scores; its feature network is loaded, and real images are seen, before training starts."""
    tracking, score = run.tracking, None
    assert tracking.score_every_steps is not None
    if log is not None:
        # Only here, and only if scores are asked for, must the scores' libraries be installed.
        from drl_dist.evaluation.scores import image_scorer

        score = image_scorer(
            tracking.score_features, index, tracking.score_num_images, state.network.stem.weight.device
        )
    return Scores(
        run.experiment,
        run.engine,
        tracking.score_every_steps,
        tracking.score_num_images,
        rank,
        world_size,
        score,
        log if log is None or trial is None else trial.telling(log),
        None if trial is None else trial.see_images,
    )
