"""Who is told about a training step: the console, the tracker, the storage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray.train
import torch

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.common.images import grid
from drl_dist.common.progress import duration
from drl_dist.config.tree import EngineConfig, Experiment, RunConfig
from drl_dist.jobs.train.scores import draw_together
from drl_dist.jobs.train.storage import Uploader
from drl_dist.training.guard import Interrupt
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState

PROGRESS_SECONDS = 10.0
PROGRESSION_ROWS = 8
GRID_PIXELS = 32
"""Smaller images are enlarged to about this size in grids."""


_TOLD = {
    Interrupt.CHECKPOINT: "a machine is about to be taken away, so a checkpoint is written",
    Interrupt.STOP: "asked to stop, so a checkpoint is written and training ends",
}


class Progress:
    """A line every few seconds: step, loss, rate, share of time spent waiting for data, time left."""

    def __init__(self) -> None:
        self._began = self._told = time.monotonic()
        self._waited = 0.0
        self._first_step: int | None = None
        self._told_step = 0

    def on_step(self, report: StepReport, state: TrainState) -> None:
        now = time.monotonic()
        if report.result.interrupt is not Interrupt.NONE:
            print(f"step {report.step}/{report.num_steps}: {_TOLD[report.result.interrupt]}", flush=True)
        if self._first_step is None:
            # Compilation and warm-up would spoil the estimate.
            self._first_step = self._told_step = report.step
            self._began = now
            print(f"step {report.step}/{report.num_steps}: under way", flush=True)
            return
        self._waited += report.wait_seconds
        if now - self._told < PROGRESS_SECONDS and report.step < report.num_steps:
            return
        steps, seconds = report.step - self._told_step, now - max(self._told, self._began)
        per_step = (now - self._began) / (report.step - self._first_step)
        images = report.images_seen / report.step * steps / seconds
        print(
            f"step {report.step}/{report.num_steps}: loss {float(report.result.loss):.4g}, {images:.1f} images/s, "
            f"waiting for data {self._waited / seconds:.1%}, "
            f"{duration((report.num_steps - report.step) * per_step)} left",
            flush=True,
        )
        self._told, self._told_step, self._waited = now, report.step, 0.0


@dataclass(frozen=True)
class Metrics:
    """Every number of a step, every so many steps."""

    log: Callable[[int, dict[str, float]], None]
    every_steps: int

    def on_step(self, report: StepReport, state: TrainState) -> None:
        if report.step % self.every_steps == 0 or report.step == report.num_steps:
            self.log(report.step, report.metrics())


@dataclass(frozen=True)
class Samples:
    """Images generated from the averaged weights, always from the same noise; all ranks draw a share.

    Args:
        show: gets a name, the step and a sheet (H, W, 3) uint8; None on ranks that only help to draw.
    """

    experiment: Experiment
    engine: EngineConfig
    every_steps: int
    num_samples: int
    rank: int
    world_size: int
    show: Callable[[str, int, np.ndarray], None] | None

    def on_step(self, report: StepReport, state: TrainState) -> None:
        if report.step % self.every_steps == 0 or report.step == report.num_steps:
            self.draw(report.step, state)

    def draw(self, step: int, state: TrainState) -> None:
        """Draw and show the pictures of a state; a collective call of all ranks."""
        stages = draw_together(
            self.experiment,
            self.engine,
            state,
            self.num_samples,
            rank=self.rank,
            world_size=self.world_size,
            whole_way=True,
        )
        if self.show is not None:
            enlarge = max(1, GRID_PIXELS // self.experiment.model.resolution)
            self.show("samples", step, grid(stages[-1], enlarge=enlarge))
            # One row per image, from white noise on the left to the sample on the right.
            rows = stages[:, :PROGRESSION_ROWS].transpose(0, 1).flatten(0, 1)
            self.show("progression", step, grid(rows, len(stages), enlarge=enlarge))


@dataclass(frozen=True)
class Checkpoints:
    """Writes the state to a temporary folder, and lets Ray Train upload it while training goes on.

    Args:
        run_url: folder of the run.
        fingerprint: of the data.
        register: gets the step, the local folder and what else to tell, before the folder goes; None on ranks that
            only take part in the report.
        gather: the ledger of damaged samples, on rank 0 if it has lines; asked by all ranks.
        uploaded: called when a checkpoint is complete in storage.
    """

    run: RunConfig
    run_url: str
    fingerprint: str
    world_size: int
    register: Callable[[int, Path, Mapping[str, object]], None] | None
    gather: Callable[[torch.device], bytes | None]
    uploaded: Callable[[], None]

    def on_step(self, report: StepReport, state: TrainState) -> None:
        is_due = report.step % self.run.checkpoint.every_steps == 0 or report.step == report.num_steps
        if not is_due and report.result.interrupt is Interrupt.NONE:
            return
        name, checkpoint = checkpoint_name(report.step), None
        ledger = self.gather(state.network.stem.weight.device)
        if self.register is not None:
            folder = Path(tempfile.mkdtemp(prefix="drl-checkpoint-"))
            write_checkpoint(folder, state.tensors(), self._state(report), self.run.experiment)
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
            checkpoint_upload_fn=Uploader(self.run_url, ledger, self.uploaded),
        )

    def _state(self, report: StepReport) -> CheckpointState:
        return CheckpointState(
            step=report.step,
            images_seen=report.images_seen,
            next_position=report.images_seen,
            seed=self.run.experiment.train.seed,
            data_fingerprint=self.fingerprint,
            world_size=self.world_size,
        )
