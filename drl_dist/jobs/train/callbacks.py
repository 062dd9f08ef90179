"""The callbacks of a training worker and their order, and the one that writes checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.common.waiting import Waiting
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train.faults.damage import Damage
from drl_dist.jobs.train.faults.restarts import ScaleUp
from drl_dist.jobs.train.faults.spares import Spare
from drl_dist.jobs.train.metrics import Clock, Exports, Stalling
from drl_dist.jobs.train.storage import Uploader
from drl_dist.training.callbacks import LogMetrics, Metrics, Progress, Samples, Scores, told
from drl_dist.training.loop import Callback, StepReport
from drl_dist.training.state import TrainState
from drl_dist.training.watch import RunawayGuard


def build_callbacks(
    run: RunConfig,
    *,
    world_size: int,
    log: LogMetrics | None,
    exports: Exports | None,
    samples: Samples,
    scores: Scores | None,
    trial: Callback | None,
    damage: Damage,
    checkpoints: Checkpoints,
    clock: Clock,
    curves: Callback | None = None,
    health: Callback | None = None,
    waiting: Waiting | None = None,
    interval: Callback | None = None,
) -> list[Callback]:
    """The callbacks of one rank, in the order in which they are called after every step.

    1. `Progress`, `Metrics` and `Exports`, on the first rank: the numbers of a step are known, whatever ends the run at
       it.
    2. `ScaleUp`, on the first rank of a run with fewer workers than it wants: a restart that is due right after a
       checkpoint does not wait for pictures, which the restarted workers would draw again.
    3. `RunawayGuard`: no pictures, scores or checkpoint of a state that has run away.
    4. `Samples`, then `Scores`.
    5. The callback of a sweep's trial: it reports the scores of this step.
    6. `Damage`: the list of substitutes is in storage before the checkpoint that it belongs to.
    7. `Checkpoints`, last, with its time counted as a stall: a restart continues after the checkpoint's step, of which
       everything else must have been logged.

    `Spare`, on all ranks, can be anywhere. Those that are collective (4 to 7) are in the list of every rank or of none.

    Args:
        run: the run.
        world_size: ranks that there are.
        log: takes metrics; None, as is `exports`, on all ranks but the first.
        exports: of this run.
        samples, scores, trial, damage, checkpoints: the callbacks; None where the run has none.
        clock: of this worker.
        health: judges the run on the first rank, right behind what logs its numbers.
        curves: draws curves on the first rank, right behind `Samples`; None where files have no part in it.
        waiting: says what takes long; None on all ranks but the first.
        interval: asks for checkpoints, right before the callback that writes them; None on all ranks but the first, and
            where they are written every so many steps.
    """
    # Those of trials would be for each of them, and are not worth it for runs of minutes.
    callbacks: list[Callback] = [Spare()] if run.spare_processes and trial is None else []
    if log is not None and exports is not None:
        # Trials print beside each other.
        prefix = f"{run.run_name}: " if trial is not None else ""
        callbacks += [Progress(prefix), Metrics(log, run.tracking.log_every_steps), exports]
        callbacks += [] if health is None else [health]
        if world_size < run.num_workers:
            callbacks.append(ScaleUp(run, world_size, clock))
    callbacks += [RunawayGuard(run.checkpoint.every_steps), samples]
    callbacks += [one for one in (curves, scores, trial) if one is not None]
    callbacks.append(damage)
    callbacks += [] if interval is None else [interval]
    callbacks.append(Stalling(checkpoints, clock))
    return callbacks if waiting is None else told(waiting, run, callbacks)


@dataclass(frozen=True)
class Checkpoints:
    """Writes the state to a temporary folder, and lets Ray Train upload it while training continues.

    Args:
        run_url: folder of the run.
        fingerprint: of the data.
        register: gets the step, the local folder and metadata, before the folder is removed; None on ranks that
            only take part in the report.
        gather: brings the log of substitutes, which `before_upload` writes, up to date; called by all ranks.
        uploaded: called when a checkpoint is complete in storage.
        before_upload: see `Uploader`.
    """

    run: RunConfig
    run_url: str
    fingerprint: str
    world_size: int
    register: Callable[[int, Path, Mapping[str, object]], None] | None
    gather: Callable[[torch.device], None]
    uploaded: Callable[[], None]
    before_upload: Callable[[], None] = lambda: None

    def on_step(self, report: StepReport, state: TrainState) -> None:
        if not report.wants_checkpoint(self.run.checkpoint.every_steps):
            return
        name, checkpoint = checkpoint_name(report.step), None
        self.gather(state.network.device)
        # Asked of every rank: workers that share the state bring it together.
        tensors = state.tensors()
        if self.register is not None:
            folder = Path(tempfile.mkdtemp(prefix="drl-checkpoint-"))
            experiment = self.run.experiment
            reached = CheckpointState.after(report.step, experiment, self.fingerprint, self.world_size)
            write_checkpoint(folder, tensors, reached, experiment)
            self.register(
                report.step,
                folder,
                {
                    "images_seen": report.images_seen,
                    "run_name": self.run.run_name,
                    "checkpoint_url": f"{self.run_url}/{name}",
                },
            )
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        # Plain numbers only: Ray keeps them as JSON. Every rank reports, or the others would wait for ever.
        ray.train.report(
            {"step": report.step},
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=Uploader(self.run_url, self.uploaded, self.before_upload),
        )
