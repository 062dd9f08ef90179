"""Training and scoring of one setting from one seed, from wherever an earlier start was ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quality.data import Data
from benchmarks.quality.options import POINTS
from benchmarks.quality.record import SHEETS, Record
from benchmarks.quality.schedule import Schedule
from benchmarks.quality.scores import Scorer
from benchmarks.quality.settings import SETTINGS, Setting
from benchmarks.quality.trainees import Trainee, start, step_flop
from drl_dist.common.images import Panel
from drl_dist.common.progress import Advance, progress
from drl_dist.jobs.common.output.sheet import sheet_of
from drl_dist.training.cost import count_flop
from drl_dist.training.guard import DivergedError
from drl_dist.training.in_memory import InMemoryBatches

SHEET = 64
"""Samples of a sheet."""
_SAVE_SECONDS = 300.0


def preset_budget(data: Data) -> float:
    """Floating-point operations of the preset's own training, for each training image."""
    setting = SETTINGS["preset"]
    (experiment,) = setting.experiments(data.name, 0)
    steps = experiment.train.num_steps * experiment.train.batch_size
    return step_flop(setting, experiment) * steps / len(data.train)


def schedule_of(setting: Setting, data: Data, seed: int, budget: float) -> Schedule:
    """What a budget per training image pays for.

    Args:
        budget: floating-point operations for each training image.
    """
    experiments = setting.experiments(data.name, seed)
    costs = [step_flop(setting, experiment) for experiment in experiments]
    return Schedule.within(budget * len(data.train), experiments, [phase.share for phase in setting.phases], costs)


@dataclass
class Run:
    """One setting, trained from one seed.

    Args:
        title: what its progress is shown as.
        name: of the setting in `SETTINGS`.
        num_images: samples that are scored.
        points: shares of the budget at which they are.
    """

    title: str
    name: str
    setting: Setting
    seed: int
    schedule: Schedule
    data: Data
    record: Record
    scorer: Scorer
    num_images: int
    points: tuple[float, ...] = POINTS
    _flop: dict[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int], init=False)
    """Operations of a sample, by the first step of its phase and the way it is drawn."""

    def finish(self) -> None:
        """Make the steps and the points that are missing."""
        first = self.schedule.stages[0].experiment
        trainee = start(self.setting, first)
        seconds = self.record.load_state(self.name, self.seed, trainee.state)
        made = trainee.state.step
        # Samples are drawn as in the phase of the last step, also where the next step is of another.
        trainee.begin(self.schedule.stage_of(max(0, made - 1)).experiment)
        with progress(self.title, self.schedule.num_steps, made, "steps") as advance:
            for point, share in enumerate(self.points):
                if self.record.point(self.name, self.setting, self.seed, point) is not None:
                    continue
                seconds, diverged = self._train(trainee, self.schedule.step_at(share), seconds, advance)
                if diverged is None:
                    # Before the samples: drawing them can take as long as many steps.
                    self.record.save_state(self.name, self.seed, trainee.state, seconds)
                advance(0, f"drawing {self.num_images} images")
                draws = {} if diverged else self._draw(trainee, is_last=point == len(self.points) - 1)
                told = self._cost(trainee.state.step, seconds) | {"diverged": diverged, "draws": draws}
                self.record.add_point(self.name, self.setting, self.seed, point, told)
        self.record.drop_state(self.name, self.seed)

    def _train(self, trainee: Trainee, until: int, seconds: float, advance: Advance) -> tuple[float, str | None]:
        """Seconds of all steps so far, and how the training diverged, if it did."""
        saved, batches, stage = time.monotonic(), None, self.schedule.stage_of(trainee.state.step)
        while trainee.state.step < until:
            step = trainee.state.step
            if batches is None or step == self.schedule.stage_of(step).first_step:
                stage = self.schedule.stage_of(step)
                if step == stage.first_step:
                    trainee.begin(stage.experiment)
                train = stage.experiment.train
                batches = iter(
                    InMemoryBatches(
                        self.data.train,
                        seed=self.seed,
                        batch_size=train.batch_size,
                        start_position=step * train.batch_size,
                        horizontal_flip=train.horizontal_flip,
                    )
                )
            batch = next(batches)
            began = time.perf_counter()
            try:
                trainee.step(batch)
            except DivergedError as error:
                return seconds, f"after {error.step} steps"
            seconds += time.perf_counter() - began
            advance(1)
            if time.monotonic() - saved > _SAVE_SECONDS:
                self.record.save_state(self.name, self.seed, trainee.state, seconds)
                saved = time.monotonic()
        return seconds, None

    def _draw(self, trainee: Trainee, *, is_last: bool) -> dict[str, Any]:
        """Scores of the samples drawn in each way that this point has."""
        found: dict[str, Any] = {}
        for index, (way, how) in enumerate(self.setting.draws.items()):
            if index and not is_last:
                continue
            key = (self.schedule.stage_of(max(0, trainee.state.step - 1)).first_step, way)
            if key not in self._flop:
                self._flop[key] = count_flop(lambda how=how: trainee.draw(how, 1))
            began = time.perf_counter()
            images = trainee.draw(how, self.num_images)
            seconds = time.perf_counter() - began
            name = f"{self.name}-{self.seed}{f'-{index}' if index else ''}"
            caption = f"{self.setting.label}, {self.data.name}, step {trainee.state.step}, seed {self.seed}"
            write_sheet(self.record, name, Panel(title=f"samples, {way}", images=images[:SHEET], columns=8), caption)
            found[way] = {"flop_per_image": self._flop[key], "seconds": seconds, **self.scorer.score(images)}
        return found

    def _cost(self, step: int, seconds: float) -> dict[str, Any]:
        stage = self.schedule.stage_of(max(0, step - 1))
        return {
            "step": step,
            "num_steps": self.schedule.num_steps,
            "images": step * stage.experiment.train.batch_size,
            "flop_per_image_of_a_step": stage.flop_per_step / stage.experiment.train.batch_size,
            "flop_per_training_image": self.schedule.flop_after(step) / len(self.data.train),
            "seconds": seconds,
        }


def write_sheet(record: Record, name: str, panel: Panel, caption: str) -> None:
    """Write a sheet of images with its caption: what they are images of, the step and the seed of samples."""
    (record.folder / SHEETS / f"{name}.png").write_bytes(sheet_of([panel], caption))
