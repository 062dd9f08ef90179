"""A trial of a sweep, as run by its process on the cluster."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray.train
from ray.train import Checkpoint
from ray.train.collective import broadcast_from_rank_zero
from ray.tune.integration.ray_train import TuneReportCallback
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten, to_dict
from drl_dist.common.waiting import Waiting, count_silence
from drl_dist.config.tree import RunConfig
from drl_dist.data.filesystem import Folder
from drl_dist.jobs.sweep.record import (
    BAD_SCORE,
    CURVE,
    OBJECTIVE,
    OUTCOME,
    TRIAL,
    Curve,
    Outcome,
    Point,
    Status,
    SweepFolder,
    Trial,
    read,
    write,
)
from drl_dist.jobs.sweep.space import apply
from drl_dist.jobs.train.driver import ParentJob, PreparedRun, fit_run, prepare_run
from drl_dist.jobs.train.faults.restarts import FINAL_ERRORS
from drl_dist.jobs.train.task import Log
from drl_dist.tracking.sweeps import trial_tags
from drl_dist.training.guard import DivergedError
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState
from drl_dist.training.watch import FIRST_STEPS, DivergenceLimits, DivergenceWatch

_POLL_SECONDS = 0.05


def run_trial(config: dict[str, Any], *, folder: SweepFolder, sweep_run: str, limits: DivergenceLimits) -> None:
    """The trainable of Ray Tune: make the trial ``config["number"]``, or what is left of it.

    A trial that diverges, or that fails in a way that no repetition mends, ends here with its outcome written; only
    what may be mended is raised, and Ray Tune tries again.

    Args:
        config: as Ray Tune gives it.
        folder: of the sweep.
        sweep_run: id of the sweep's tracked run.
        limits: when a trial ends as diverged.
    """
    number = int(config["number"])
    url = folder.trial_url(number)
    # What an earlier try wrote before it failed: without an outcome a trial that ends was stopped.
    Folder(url).remove(OUTCOME)
    reports = Reports()
    try:
        outcome = _make(folder, number, reports, sweep_run, limits)
    except Exception as error:
        write(url, OUTCOME, end_of(folder, number, "failed", f"{type(error).__name__}: {error}"))
        if not isinstance(error, FINAL_ERRORS):
            raise
    else:
        write(url, OUTCOME, outcome)
    finally:
        reports.wait_until_taken()


def _make(folder: SweepFolder, number: int, reports: Reports, sweep_run: str, limits: DivergenceLimits) -> Outcome:
    # From here on this process says what it waits for.
    count_silence()
    with Waiting(f"run {folder.run_name(number)}") as waiting:
        waiting.begin("reading its record, the index of the data and the list of checkpoints")
        prepared, trial = prepare_trial(folder, number)
    # Scheduler and searcher are new with every start of the sweep.
    for report in earlier_reports(folder, number, prepared):
        reports.put(report)
    if not prepared.is_complete:
        parent = ParentJob(
            model_name=folder.plan.model_name,
            tags=trial_tags(sweep_run, number, trial.values),
            controller_callbacks=[reports],
            make_callback=partial(TrialScores.resumed, limits),
        )
        try:
            fit_run(prepared, parent)
        except DivergedError as error:
            seen = error.step * prepared.run.experiment.train.batch_size
            reports.put(as_report(error.step, seen, BAD_SCORE, is_last=True))
            return Outcome(status="diverged", reason=str(error), score=BAD_SCORE, step=error.step, images_seen=seen)
    return end_of(folder, number, "finished", "all steps are made")


class Reports(TuneReportCallback):
    """Brings scores from Ray Train's controller, and from this process, to Ray Tune.

    Both go one way, the queue: Ray's session could not take a report of its own beside one that waits there.
    """

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        # Checkpoints are reported too, without a score.
        if "score" in metrics[0]:
            self.put(metrics[0])

    def put(self, report: dict[str, Any]) -> None:
        """Hand on one report, as `as_report` makes it."""
        self._training_actor_item_queue.put(dict(report))

    def wait_until_taken(self) -> None:
        """Return when Ray Tune has taken every report; a trial must not end before.

        When a trial's function ends, Ray puts a report of its own into a place for one. A report from the queue that
        comes just then waits for that place in the thread that should empty it, for ever. Ray skips an empty report,
        and takes it only when the one before it is done with.
        """
        self.put({})
        while not self._training_actor_item_queue.empty():
            time.sleep(_POLL_SECONDS)


def as_report(step: int, images_seen: int, score: float, *, is_last: bool) -> dict[str, Any]:
    """Reports of a trial to Ray Tune.

    Args:
        step: steps made.
        images_seen: the time by which trials are compared.
        score: finite; smaller is better.
        is_last: the trial ends by itself, with its last checkpoint written: it must not be stopped.
    """
    return {"step": step, "images_seen": images_seen, "score": score, "is_last": is_last}


def trial_config(folder: SweepFolder, trial: Trial) -> RunConfig:
    """The run of a trial."""
    run = apply(trial.values, folder.plan.base)
    return dataclasses.replace(run, run_name=folder.run_name(trial.number), storage=folder.url)


def prepare_trial(folder: SweepFolder, number: int) -> tuple[PreparedRun, Trial]:
    """The run of a trial that was proposed, checked.

    Raises:
        UserError: from `prepare_run`, or the trial's record is gone.
    """
    trial = read(folder.trial_url(number), TRIAL, Trial)
    if trial is None:
        raise UserError(
            f"trial {folder.trial_url(number)}",
            got=f"no {TRIAL}",
            expected="what the sweep wrote there",
            remedy="leave the sweep's folder alone while it runs",
        )
    return prepare_run(trial_config(folder, trial)), trial


def earlier_reports(folder: SweepFolder, number: int, prepared: PreparedRun) -> list[dict[str, Any]]:
    """The reports of a trial's earlier starts, as far as its newest checkpoint goes."""
    last = prepared.run.experiment.train.num_steps
    curve = folder.curve(number).before(prepared.newest.step if prepared.newest else 0)
    return [as_report(point.step, point.images_seen, point.score, is_last=point.step == last) for point in curve.points]


def end_of(folder: SweepFolder, number: int, status: Status, reason: str) -> Outcome:
    """The outcome of a trial that did not diverge, with its last score."""
    points = folder.curve(number).points
    point = points[-1] if points else None
    return Outcome(
        status=status,
        reason=" ".join(reason.split())[:500],
        score=point.score if point else BAD_SCORE,
        step=point.step if point else 0,
        images_seen=point.images_seen if point else 0,
    )


def plain_fields(run: RunConfig) -> dict[str, Any]:
    """A run's fields by their dotted names, as a tracked run shows them."""
    return {name.removeprefix("experiment."): value for name, value in flatten(to_dict(run)).items()}


@dataclass
class TrialScores:
    """Ends a trial that has diverged, keeps the trial's curve beside its checkpoints, and reports each score to Ray.

    Stands behind the callback that scores, and before the one that writes checkpoints: a checkpoint that is complete
    has its scores in the curve.

    Args:
        watch: the same on all ranks.
        run_url: the trial's folder.
        every_steps: schedule of the scores.
        curve: so far; None on ranks that do not score.
    """

    watch: DivergenceWatch
    run_url: str
    every_steps: int
    curve: Curve | None
    _scores: dict[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def resumed(cls, limits: DivergenceLimits, run: RunConfig, *, rank: int, step: int) -> TrialScores:
        """For a trial that has made so many steps; a collective call of all ranks."""
        every_steps = run.tracking.score_every_steps
        assert every_steps is not None, "the plan of a sweep gives its trials a schedule of scores"
        curve = (read(run.url, CURVE, Curve) or Curve()).before(step) if rank == 0 else None
        # Ray's types know of bytes alone.
        known: Any = broadcast_from_rank_zero(None if curve is None else _first_gaps(curve, step))
        first_gaps, num_first_steps = known
        return cls(DivergenceWatch(limits, dict(first_gaps), num_first_steps), run.url, every_steps, curve)

    def telling(self, log: Log) -> Log:
        """A function that logs scores, and notes them for the report of their step."""

        def log_and_see(step: int, numbers: dict[str, float]) -> None:
            log(step, numbers)
            self._scores = {name: float(value) for name, value in numbers.items()}

        return log_and_see

    def see_images(self, step: int, images_seen: int, images: Tensor) -> None:
        """Generated images, on every rank; see `DivergenceWatch.see_images`."""
        self.watch.see_images(step, images_seen, images)

    def on_step(self, report: StepReport, state: TrainState) -> None:
        self.watch.see_step(report.step, report.images_seen, report.metrics())
        if report.step % self.every_steps and report.step != report.num_steps:
            return
        metrics: dict[str, float] = {"step": report.step}
        if self.curve is not None:
            point = Point(step=report.step, images_seen=report.images_seen, scores=self._scores)
            self.curve = Curve(
                points=(*self.curve.points, point),
                first_gaps=dict(self.watch.first_gaps),
                num_first_steps=self.watch.num_first_steps,
            )
            write(self.run_url, CURVE, self.curve)
            metrics |= {"images_seen": report.images_seen, "score": self._scores[OBJECTIVE]}
        # A collective call: every rank reports, or the others would wait for ever.
        ray.train.report(metrics)


def _first_gaps(curve: Curve, step: int) -> tuple[dict[str, float], int]:
    """What a watch is to remember of the steps before this one: the first gaps, and how many steps they are of."""
    if step == 0:
        return {}, 0
    if curve.num_first_steps is not None:
        return curve.first_gaps, curve.num_first_steps
    return curve.first_gaps, min(step, FIRST_STEPS) if curve.first_gaps else 0
