"""The sweep's searcher and scheduler for Ray Tune: the next trial, early stopping, and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from drl_dist.jobs.sweep.options import SweepPlan
from drl_dist.jobs.sweep.proposals import Proposer
from drl_dist.jobs.sweep.record import OUTCOME, Outcome, Point, SweepFolder, read, write
from drl_dist.jobs.sweep.trial import as_report, end_of

METRIC, TIME = "score", "images_seen"


class SweepSearch(Searcher):
    """Hands out the trials that have not ended, first those of earlier starts, and writes down each new one.

    Args:
        folder: of the sweep.
        proposer: knows all trials of earlier starts.
        unfinished: numbers of those that continue.
        first_new: number of the next new trial.
    """

    def __init__(self, folder: SweepFolder, proposer: Proposer, unfinished: Iterable[int], first_new: int) -> None:
        super().__init__(metric=METRIC, mode="min")
        self._folder, self._proposer = folder, proposer
        self._queue, self._next = list(unfinished), first_new
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The configuration of a trial that Ray Tune starts: its number alone; the trial's folder says the rest."""
        if self._queue:
            number = self._queue.pop(0)
        elif self._next < self._folder.plan.num_trials:
            number, self._next = self._next, self._next + 1
            # Written before the trial starts: a sweep that is started again knows every trial there was.
            self._folder.propose(number, self._proposer.propose(number))
        else:
            return self.FINISHED
        self._numbers[trial_id] = number
        return {"number": number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result is not None and METRIC in result and not error:
            self._proposer.tell(self._numbers[trial_id], float(result[METRIC]))

    def save(self, checkpoint_path: str) -> None:
        # Ray Tune asks for this now and then; a sweep continues from its own folder alone.
        Path(checkpoint_path).write_text("the state is in the sweep's folder\n")

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a sweep is started from scratch, and continues from its folder")

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles what it was given into its own folder, from which nothing is read here.
        return {}


class Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934) in images seen.

    A trial that makes its last report is left alone: it ends by itself, with its checkpoint written.
    """

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result.get("is_last") else decision


def make_scheduler(plan: SweepPlan) -> TrialScheduler:
    """The scheduler of a sweep; without early stopping, one that stops nothing."""
    if not plan.options.early_stopping:
        return FIFOScheduler()
    return Halving(
        time_attr=TIME,
        metric=METRIC,
        mode="min",
        grace_period=plan.grace_images,
        # Beyond the last report, at which every trial ends by itself.
        max_t=plan.max_images + 1,
        reduction_factor=plan.options.reduction_factor,
        stop_last_trials=False,
    )


def replay(scheduler: TrialScheduler, number: int, points: Iterable[Point], outcome: Outcome) -> None:
    """Let a new scheduler know a trial that ended in an earlier start, as if it had just run."""
    trial = TuneTrial("earlier", stub=True, trial_id=f"earlier-{number}")
    scheduler.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]
    reports = [as_report(point.step, point.images_seen, point.score, is_last=False) for point in points]
    reports.append(as_report(outcome.step, outcome.images_seen, outcome.score, is_last=True))
    for report in reports:
        scheduler.on_trial_result(None, trial, report)  # pyright: ignore[reportArgumentType]
    scheduler.on_trial_complete(None, trial, reports[-1])  # pyright: ignore[reportArgumentType]


class SweepNews(Callback):
    """Writes down how trials end, and says so.

    Args:
        folder: of the sweep.
        ended: gets the number and the outcome of each trial that has ended, however it did.
    """

    def __init__(self, folder: SweepFolder, ended: Callable[[int, Outcome], None]) -> None:
        self._folder, self._ended = folder, ended

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        print(
            f"trial {trial.config['number']}: step {result['step']}, {result[TIME]} images, score {result[METRIC]:.5g}",
            flush=True,
        )

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        number = int(trial.config["number"])
        outcome = read(self._folder.trial_url(number), OUTCOME, Outcome)
        if outcome is None:
            # A trial that ends by itself says how; this one was ended.
            last = trial.last_result
            outcome = Outcome(
                status="stopped",
                reason=f"its score was behind after {last[TIME]} images",
                score=float(last[METRIC]),
                step=int(last["step"]),
                images_seen=int(last[TIME]),
            )
            write(self._folder.trial_url(number), OUTCOME, outcome)
        self._tell(number, outcome)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        number = int(trial.config["number"])
        outcome = read(self._folder.trial_url(number), OUTCOME, Outcome)
        if outcome is None:
            outcome = end_of(self._folder, number, "failed", f"its process died: {trial.get_error()}")
            write(self._folder.trial_url(number), OUTCOME, outcome)
        self._tell(number, outcome)

    def _tell(self, number: int, outcome: Outcome) -> None:
        print(f"trial {number} {outcome.status} after step {outcome.step}: {outcome.reason}", flush=True)
        self._ended(number, outcome)
