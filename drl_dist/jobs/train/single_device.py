"""Training in this process on one device, without Ray and MLflow: ``jobs/train_*.py --without-ray``.

Data order, noise, checkpoints and the run's folder are those of the Ray job: either resumes what the other began.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

from drl_dist.checkpoints.format import PARTS, CheckpointState, read_checkpoint, write_checkpoint
from drl_dist.checkpoints.retention import remove_orphaned
from drl_dist.checkpoints.rollbacks import noise_seed, read_rollbacks
from drl_dist.checkpoints.run_config import write_run_config
from drl_dist.checkpoints.run_record import RECORD, check_checkpoint, check_record, continued, write_record
from drl_dist.checkpoints.run_status import refuse_at_work, status_recorded
from drl_dist.checkpoints.storage import StoredCheckpoint, checkpoint_name, fetch_checkpoint, upload_checkpoint
from drl_dist.checkpoints.verify import newest_verified_checkpoint
from drl_dist.checkpoints.warm_start import starting_point
from drl_dist.common.amounts import counted
from drl_dist.common.batch import BatchSource
from drl_dist.common.errors import UserError
from drl_dist.common.images import Panel
from drl_dist.common.places import joined
from drl_dist.common.program import SIGNALS, Stopped
from drl_dist.common.waiting import Waiting, say
from drl_dist.config.rules import ARRAY_SUFFIX
from drl_dist.config.tree import Experiment, RunConfig
from drl_dist.data.audit import audited
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.labels import checked_names, labelled_by
from drl_dist.data.pixels.array_file import read_array_file
from drl_dist.data.pixels.scales import scaled_to
from drl_dist.data.pixels.statistics import PixelStatistics, measure_images
from drl_dist.data.stream import ShardStream
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.train.at_work import refuse_at_work_elsewhere
from drl_dist.jobs.train.interval import AutoInterval
from drl_dist.jobs.train.memory import KeptCosts
from drl_dist.jobs.train.pictures import training_sheet
from drl_dist.tracking.files.events import check_tensorboard
from drl_dist.tracking.files.run_files import RunFiles, refuse_other_files
from drl_dist.training.callbacks import Curves, Metrics, Progress, Samples, ScoreImages, Scores, to_come, told
from drl_dist.training.guard import DivergedError, Interrupt
from drl_dist.training.health_watch import HealthWatch, seen_by
from drl_dist.training.in_memory import InMemoryBatches
from drl_dist.training.loop import Callback, StepReport, train
from drl_dist.training.memory import fit_memory
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from drl_dist.training.watch import FirstBatch, RunawayGuard


@dataclass(frozen=True)
class _Data:
    """The images of a run."""

    fingerprint: str
    index: ShardIndex | None
    """None for images in one file."""
    statistics: Callable[[], PixelStatistics | None]
    """Of all pixels."""
    batches: Callable[[int], AbstractContextManager[BatchSource]]
    """Batches from a position in the stream of samples on."""

    def labelled(self, run: RunConfig) -> Experiment:
        """The run's experiment with the names of the data's labels; see `drl_dist.data.labels.labelled_by`."""
        if self.index is None:
            checked_names(run.experiment.condition, (), f"data {run.data}")
            return run.experiment
        return labelled_by(run.experiment, self.index)


def train_on_one_device(run: RunConfig, chosen: Collection[str] = ()) -> int:
    """Start or resume a run, make the steps that are left; the exit status.

    Args:
        run: complete and checked; see `drl_dist.config.rules.check_without_ray`.
        chosen: fields that were given explicitly; see `drl_dist.checkpoints.run_record.continued`.

    Returns:
        0 if the run has made all its steps, 1 if it diverged.

    Raises:
        UserError: something that the user gave cannot be used.
        Stopped: a signal ended it before all steps were made.
    """
    with Waiting(f"run {run.run_name}") as waiting:
        return _train_told(run, chosen, waiting)


def _train_told(run: RunConfig, chosen: Collection[str], waiting: Waiting) -> int:
    # Not the CPUs that Ray would give a worker: the device is this process's own.
    waiting.begin(f"reading {run.data}", is_told=False)
    device = prepare_device(device_name(run.use_gpu), threads=run.engine.threads_per_worker, is_reproducible=False)
    data = _open_data(run)
    # Before the run is compared with its record, which holds numbers.
    run = dataclasses.replace(run, experiment=scaled_to(data.labelled(run), data.statistics, run.data))
    run_url = joined(run.storage, run.run_name)
    check_reachable(run_url)
    run = continued(run, chosen)
    experiment = run.experiment
    check_record(run_url, experiment, data.fingerprint, run.start_from)
    refuse_other_files(run_url, RECORD)
    if run.tracking.tensorboard:
        check_tensorboard()
    waiting.begin(f"looking for the newest checkpoint in {run_url}", is_told=False)
    newest = newest_verified_checkpoint(run_url)
    if newest is not None and newest.step >= experiment.train.num_steps:
        print(
            f"run {run.run_name} has made its {counted(newest.step, 'step')}; its last checkpoint is {newest.url} "
            "(a larger --train.num-steps continues from there)",
            flush=True,
        )
        return 0
    refuse_at_work(run_url)
    refuse_at_work_elsewhere(run_url)
    if run.start_from is not None and newest is None:
        run = dataclasses.replace(run, start_from=starting_point(run.start_from, experiment, data.fingerprint))
    if run.tracking.score_every_steps is not None:
        waiting.begin("reading the network and the real images of scores", is_told=False)
    score = _scorer(run, data, device)
    waiting.begin("making the network", is_told=False)
    state = TrainState.create(experiment, device)
    began_at = newest.url if newest else run.start_from
    if began_at is not None:
        waiting.begin(f"reading {began_at}", is_told=False)
        _restore(state, run, began_at, data.fingerprint)
    waiting.begin("choosing how a step fits into memory", is_told=False)
    kept = KeptCosts(run_url)
    fit = fit_memory(experiment, run.engine, device=device, state_bytes=state.num_bytes, kept=kept)
    # Once more: two may have been started in the same moment.
    refuse_at_work(run_url)
    _write_records(run, data.fingerprint, kept)
    beginning = f"resuming after step {state.step} from {began_at}" if began_at else "starting"
    say(f"run {run.run_name}: {beginning} on {device}, checkpoints, metrics and samples in {run_url}")
    if fit.why:
        say(f"run {run.run_name}: {fit.why}")
    waiting.begin(to_come(run, state.step))
    try:
        with status_recorded(run_url):
            fitted = dataclasses.replace(run, engine=fit.engine)
            cause = _train(fitted, run_url, data, state, score, waiting)
            if state.step < experiment.train.num_steps:
                assert cause is not None, "training ends early for a signal alone"
                raise Stopped(cause, f"after step {state.step}, whose checkpoint is written")
    except DivergedError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    print(f"run {run.run_name} has made its {counted(state.step, 'step')}; all of it is in {run_url}", flush=True)
    return 0


def _write_records(run: RunConfig, fingerprint: str, kept: KeptCosts) -> None:
    """The record first: without it, the other files are something else's."""
    write_record(run.url, run.experiment, fingerprint, run.start_from)
    write_run_config(run, without_ray=True)
    kept.write()


def _train(
    run: RunConfig, run_url: str, data: _Data, state: TrainState, score: ScoreImages | None, waiting: Waiting
) -> str | None:
    """Make the steps that are left; the signal that asked to stop, if any."""
    experiment, tracking = run.experiment, run.tracking
    seed = noise_seed(experiment.train.seed, len(read_rollbacks(run_url)))
    with (
        StopSignals() as stop,
        RunFiles(run_url, state.step, has_events=tracking.tensorboard) as files,
        data.batches(state.step * experiment.train.batch_size) as batches,
    ):
        health = HealthWatch(files.log_metrics, tracking.log_every_steps)
        log = seen_by(health, files.log_metrics)

        def show(name: str, step: int, panel: Panel) -> None:
            files.log_image(name, step, training_sheet(run, step, panel))

        samples = Samples(experiment, run.engine, tracking.sample_every_steps, tracking.num_samples, show=show, log=log)
        # In the order of the Ray job; see `drl_dist.jobs.train.callbacks.build_callbacks`.
        callbacks: list[Callback] = [
            Progress(),
            Metrics(files.log_metrics, tracking.log_every_steps),
            health,
            RunawayGuard(run.checkpoint.every_steps),
            samples,
        ]
        if score is not None and tracking.score_every_steps is not None:
            num_images = tracking.score_num_images
            callbacks.append(
                Scores(
                    experiment,
                    run.engine,
                    tracking.score_every_steps,
                    num_images,
                    score=score,
                    log=files.log_metrics,
                )
            )
        callbacks.append(Curves(partial(files.draw_curves, experiment.train.seed), tracking.sample_every_steps))
        checkpoints, request = LocalCheckpoints(run, run_url, data.fingerprint, files), stop
        if run.checkpoint.every_steps == "auto":
            request = AutoInterval(run.checkpoint, tracking, 1, stop, files.log_metrics)
            callbacks.append(request)
            checkpoints = dataclasses.replace(checkpoints, stored=request.stored)
        callbacks.append(checkpoints)
        if state.step == 0:
            samples.draw(0, state)
        first = state.step
        watched = FirstBatch(batches, lambda share: log(first, {"data_saturated_fraction": share}))
        train(
            TrainStep(state, experiment, run.engine, request, seed),
            state,
            experiment,
            watched,
            told(waiting, run, callbacks),
        )
        return stop.cause


@dataclass(frozen=True)
class LocalCheckpoints:
    """A callback that writes checkpoints into the run's folder, and removes the oldest; the last in the list.

    Args:
        run: the run.
        run_url: its folder.
        fingerprint: of its data.
        files: its metrics and pictures, which are written before a checkpoint counts.
        stored: called when a checkpoint is complete.
    """

    run: RunConfig
    run_url: str
    fingerprint: str
    files: RunFiles
    stored: Callable[[], None] = lambda: None

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """See `drl_dist.training.loop.Callback`.

        Raises:
            UserError: the folder does not take the checkpoint; the one before it is as it was.
        """
        if not report.wants_checkpoint(self.run.checkpoint.every_steps):
            return
        experiment, url = self.run.experiment, joined(self.run_url, checkpoint_name(report.step))
        reached = CheckpointState.after(report.step, experiment, self.fingerprint, world_size=1)
        self.files.write(is_sealed=True)
        with tempfile.TemporaryDirectory(prefix="drl-checkpoint-") as folder:
            write_checkpoint(Path(folder), state.tensors(), reached, experiment)
            upload_checkpoint(Path(folder), url)
        self.stored()
        remove_orphaned(self.run_url, self.run.checkpoint.keep, StoredCheckpoint(url, report.step))


@dataclass
class StopSignals:
    """Until it is left, the first of `SIGNALS` asks training to stop at its next step; the next one ends the process.

    What the process ignores, as under nohup, stays ignored.
    """

    cause: str | None = None
    """The signal that asked."""
    _before: dict[signal.Signals, Any] = field(default_factory=dict[signal.Signals, Any])

    def __call__(self) -> Interrupt:
        """What is to happen after this step."""
        return Interrupt.NONE if self.cause is None else Interrupt.STOP

    def __enter__(self) -> Self:
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(self, *_error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _ask(self, signum: int, _frame: FrameType | None) -> None:
        # Nothing is printed here: the signal may have come in the middle of a print. `Progress` says it.
        self.cause = signal.Signals(signum).name
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)


def _open_data(run: RunConfig) -> _Data:
    experiment = run.experiment
    train_config, model = experiment.train, experiment.model
    if run.data.endswith(ARRAY_SUFFIX):
        images, fingerprint = read_array_file(run.data)
        if tuple(images.shape[1:]) != (model.channels, model.resolution, model.resolution):
            raise UserError(
                f"data {run.data}",
                got=f"images of shape {tuple(images.shape[1:])}",
                expected=f"{(model.channels, model.resolution, model.resolution)}, as the model has",
                remedy="choose a model of this shape (jobs/train.py makes one), or --model.channels and "
                "--model.resolution",
            )

        def in_memory(position: int) -> AbstractContextManager[BatchSource]:
            return nullcontext(
                InMemoryBatches(
                    images,
                    seed=train_config.seed,
                    batch_size=train_config.batch_size,
                    start_position=position,
                    horizontal_flip=train_config.horizontal_flip,
                )
            )

        return _Data(fingerprint, None, lambda: measure_images(images.numpy()), in_memory)
    index = open_index(run.data)
    index.check_model(resolution=model.resolution, channels=model.channels)
    return _Data(index.fingerprint, index, lambda: index.statistics, lambda position: _Shards(run, index, position))


class _Shards:
    """The stream of shards from a position on, in an audit log if the run keeps one; closes the stream when left."""

    def __init__(self, run: RunConfig, index: ShardIndex, position: int) -> None:
        self._run, train_config = run, run.experiment.train
        self._stream = ShardStream(
            index,
            seed=train_config.seed,
            batch_size=train_config.batch_size,
            start_position=position,
            horizontal_flip=train_config.horizontal_flip,
            loader=run.loader,
            labels=run.experiment.condition.kind,
        )

    def __enter__(self) -> BatchSource:
        stream, folder = self._stream, self._run.loader.ledger_dir
        if folder is None:
            return stream
        size = self._run.experiment.train.batch_size
        place = Path(folder) / self._run.run_name
        return audited(stream, place, stream.order, batch_size=size, rank=0, world_size=1)

    def __exit__(self, *_error: object) -> None:
        self._stream.close()


def _scorer(run: RunConfig, data: _Data, device: torch.device) -> ScoreImages | None:
    """What scores generated images, if the run asks for scores; reads real images and the feature network."""
    if run.tracking.score_every_steps is None or data.index is None:
        return None
    # Only here must the scores' libraries be installed.
    from drl_dist.evaluation.scores import image_scorer

    return image_scorer(run.tracking.score_features, data.index, run.tracking.score_num_images, device)


def _restore(state: TrainState, run: RunConfig, url: str, fingerprint: str) -> None:
    """Load a checkpoint of this run, or the one that it starts from, which was compared with it before."""
    folder = fetch_checkpoint(url, PARTS)
    try:
        checkpoint = read_checkpoint(folder, PARTS)
    finally:
        if Folder(url).local is None:
            shutil.rmtree(folder)
    check_checkpoint(checkpoint, url, run, fingerprint)
    state.load_tensors(checkpoint.tensors, checkpoint.state.step)
