"""The training worker: one DDP rank."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import ray.train

from drl_dist.checkpoints.rollbacks import noise_seed
from drl_dist.checkpoints.run_status import count_worker_start
from drl_dist.common.batch import BatchSource
from drl_dist.common.errors import UserError
from drl_dist.common.waiting import Waiting, say
from drl_dist.config.tree import RunConfig
from drl_dist.data.audit import audited
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.stream import ShardStream
from drl_dist.jobs.common.device import prepare_device
from drl_dist.jobs.common.prometheus import Exporter
from drl_dist.jobs.train.callbacks import Checkpoints, build_callbacks
from drl_dist.jobs.train.faults.damage import Damage
from drl_dist.jobs.train.faults.restore import broadcast, restore
from drl_dist.jobs.train.group import process_group
from drl_dist.jobs.train.interval import AutoInterval
from drl_dist.jobs.train.memory import KeptCosts
from drl_dist.jobs.train.metrics import Clock, Exports
from drl_dist.jobs.train.records import open_records
from drl_dist.jobs.train.stop import StopRequests
from drl_dist.jobs.train.task import ScoreCallback, WorkerTask
from drl_dist.training.callbacks import Curves, Samples, Scores, to_come
from drl_dist.training.health_watch import HealthWatch, seen_by
from drl_dist.training.loop import train
from drl_dist.training.memory import fit_memory
from drl_dist.training.sharded import sharded
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from drl_dist.training.watch import FirstBatch


def train_worker(task: WorkerTask) -> int:
    """Train this rank from the newest checkpoint that verifies to the last step, or until it is asked to stop.

    Returns:
        the number of steps made, of which a checkpoint is written.

    Raises:
        UserError: data or checkpoint are damaged or not those of this run.
        DivergedError: from the training step.
    """
    run = task.run
    # What libraries say at this level, about each report and each model version, would bury the progress lines.
    logging.disable(logging.INFO)

    with Waiting(f"run {run.run_name}") as waiting:
        return _train_told(task, waiting)


def _train_told(task: WorkerTask, waiting: Waiting) -> int:
    run = task.run
    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    begin: Callable[[str], None] = waiting.begin if is_first else lambda _: None
    if is_first:
        task.arrival.write()
        begin("the first worker is there; reading the index of the data")
    index = _index(task)
    threads = run.engine.threads_per_worker or run.cpus_per_worker
    if context.get_world_size() > 1:
        begin(f"waiting until all {context.get_world_size()} workers are there")
    with process_group(use_gpu=run.use_gpu) as device:
        prepare_device(device, threads=threads, is_reproducible=False)
        begin("making the network and reading the newest checkpoint, if there is one")
        state = TrainState.create(run.experiment, device)
        share = partial(broadcast, device)
        restore(state, run, task.fingerprint, is_first=is_first, share=share)
        # What was the newest checkpoint when the job began may turn out to be damaged.
        task = dataclasses.replace(task, first_step=min(task.first_step, state.step))
        engine = run.engine
        if context.get_world_size() == 1:
            # What is left of a run that lacks machines has nobody to share its state with.
            engine = dataclasses.replace(engine, shard=False)
        if engine.shard:
            begin("dividing the state between the workers")
            state = sharded(state, run.experiment)
        begin("choosing how a step fits into memory")
        kept = KeptCosts(run.url, is_first=is_first, share=share)
        fit = fit_memory(
            run.experiment,
            engine,
            num_workers=context.get_world_size(),
            device=device,
            state_bytes=state.num_bytes,
            kept=kept,
        )
        kept.write()
        if fit.why and is_first:
            say(f"run {run.run_name}: {fit.why}")
        task = dataclasses.replace(task, run=dataclasses.replace(run, engine=fit.engine))
        _train(task, index, state, waiting if is_first else None)
    return state.step


def _train(task: WorkerTask, index: ShardIndex, state: TrainState, waiting: Waiting | None) -> None:
    run, experiment = task.run, task.run.experiment
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    position = state.step * experiment.train.batch_size
    stream = ShardStream(
        index,
        seed=experiment.train.seed,
        batch_size=experiment.train.batch_size,
        rank=rank,
        world_size=world_size,
        ranks_here=context.get_local_world_size(),
        start_position=position,
        horizontal_flip=experiment.train.horizontal_flip,
        loader=run.loader,
        labels=experiment.condition.kind,
    )
    damage = Damage.take_up(run, run.url, stream, rank=rank, world_size=world_size, position=position)
    with ExitStack() as stack:
        stop_requests = stack.enter_context(StopRequests(task.stop_flag if rank == 0 else None))
        seed = noise_seed(experiment.train.seed, task.num_rollbacks)
        show, register, log, exports, curves, health, interval = None, None, None, None, None, None, None
        before_upload: Callable[[], None] = _nothing
        clock, exporter = Clock(), stack.enter_context(Exporter(run.run_name))
        exporter.set(workers=1)
        if rank == 0:
            status = count_worker_start(run.url)
            first_start = status.first_start if status else task.started
            records = open_records(task, state.step, stack, first_start=first_start)
            show, register = records.log_images, records.register_checkpoint
            # Trials print beside each other.
            prefix = "" if task.make_callback is None else f"{run.run_name}: "
            health = HealthWatch(
                records.log_metrics, run.tracking.log_every_steps, tell=records.tell_health, prefix=prefix
            )
            log = seen_by(health, records.log_metrics)
            if records.files is not None:
                before_upload = partial(records.files.write, is_sealed=True)
                draw = partial(records.files.draw_curves, experiment.train.seed)
                curves = Curves(draw, run.tracking.sample_every_steps)
            if task.num_rollbacks:
                log(state.step, {"rollbacks": task.num_rollbacks})
            exports = Exports(
                exporter,
                clock,
                started=task.started,
                first_step=task.first_step,
                backlog=records.backlog,
                log=log,
                log_every=run.tracking.log_every_steps,
            )
            interval = _interval(run, world_size, stop_requests, log, clock)
        tracking = run.tracking
        step = TrainStep(state, experiment, run.engine, interval or stop_requests, seed)
        samples = Samples(
            experiment, run.engine, tracking.sample_every_steps, tracking.num_samples, rank, world_size, show, log
        )
        trial, scores = None, None
        if task.make_callback is not None:
            trial = task.make_callback(run, rank=rank, step=state.step)
        if tracking.score_every_steps is not None:
            scores = _scores(run, index, state, rank, world_size, log, trial)
        before = in_turn(before_upload, damage.write)
        checkpoints = Checkpoints(
            run, run.url, task.fingerprint, world_size, register, damage.gather, clock.uploaded, before
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
            curves=curves,
            health=health,
            waiting=waiting,
            interval=interval,
        )
        stack.enter_context(stream)
        if waiting is not None:
            waiting.begin(to_come(run, state.step))
        if state.step == 0:
            # Show where training began, before there is anything else to see.
            samples.draw(0, state)
        batches = _audited(run, stream, rank, world_size)
        if log is not None:
            batches = FirstBatch(batches, partial(_log_data_share, log, state.step))
        train(step, state, experiment, batches, callbacks, bad_samples=damage.count)


def in_turn(*works: Callable[[], None]) -> Callable[[], None]:
    """What does one after the other."""

    def work() -> None:
        for one in works:
            one()

    return work


def _interval(
    run: RunConfig,
    world_size: int,
    stop_requests: StopRequests,
    log: Callable[[int, dict[str, float]], None],
    clock: Clock,
) -> AutoInterval | None:
    """What asks for checkpoints, where they are not written every so many steps."""
    if run.checkpoint.every_steps != "auto":
        return None
    machines = max(1, world_size // ray.train.get_context().get_local_world_size())
    interval = AutoInterval(run.checkpoint, run.tracking, machines, stop_requests, log)
    clock.stored = interval.stored
    return interval


def _log_data_share(log: Callable[[int, dict[str, float]], None], step: int, share: float) -> None:
    log(step, {"data_saturated_fraction": share})


def _nothing() -> None:
    """Of ranks that write no files."""


def _index(task: WorkerTask) -> ShardIndex:
    """The index of the data that the driver saw."""
    index = open_index(task.run.data, check_shards=False)
    if index.fingerprint != task.fingerprint:
        raise UserError(
            f"data {task.run.data}",
            got=f"fingerprint {index.fingerprint}",
            expected=task.fingerprint,
            remedy="leave the shards as they are while a run reads them",
        )
    return index


def _audited(run: RunConfig, stream: ShardStream, rank: int, world_size: int) -> BatchSource:
    """The stream, with an audit log if the run keeps one."""
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
    trial: ScoreCallback | None,
) -> Scores:
    """The callback that scores; its feature network is loaded, and real images are seen, before training starts."""
    tracking, score = run.tracking, None
    assert tracking.score_every_steps is not None
    if log is not None:
        # Only here, and only if scores are asked for, must the scores' libraries be installed.
        from drl_dist.evaluation.scores import image_scorer

        score = image_scorer(tracking.score_features, index, tracking.score_num_images, state.network.device)
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
        # Trials print beside each other.
        "" if trial is None else f"{run.run_name}: ",
    )
