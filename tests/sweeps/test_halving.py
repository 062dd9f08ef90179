"""Ray Tune's side without a cluster: who is next, who is stopped, what a new start knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from drl_dist.jobs.sweep.options import SweepPlan
from drl_dist.jobs.sweep.proposals import make_proposer
from drl_dist.jobs.sweep.record import BAD_SCORE, CURVE, OUTCOME, Outcome, SweepFolder, Trial, write
from drl_dist.jobs.sweep.search import SweepNews, SweepSearch, make_scheduler, replay
from drl_dist.jobs.sweep.trial import as_report, end_of, trial_config
from tests.sweeps.makers import curve, plan


def feed(scheduler: TrialScheduler, name: str, reports: Sequence[dict[str, Any]]) -> list[str]:
    """A trial's reports one by one; what is decided after each."""
    trial = TuneTrial("t", stub=True, trial_id=name)
    scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
    return [scheduler.on_trial_result(None, trial, report) for report in reports]  # type: ignore[arg-type]


def reports(score: float, steps: Sequence[int], batch_size: int = 8, last: int = 200) -> list[dict[str, Any]]:
    return [as_report(step, step * batch_size, score, is_last=step == last) for step in steps]


STEPS = range(20, 201, 20)


@pytest.fixture
def made(tmp_path: Path) -> SweepPlan:
    # A grace period of 320 images: rungs at 320 and 960.
    return plan(tmp_path)


def test_a_trial_that_is_behind_is_stopped_at_a_rung_past_the_warm_up(made: SweepPlan) -> None:
    scheduler = make_scheduler(made)
    for place in range(3):
        assert set(feed(scheduler, f"good-{place}", reports(1.2 - place / 10, STEPS))) == {"CONTINUE"}
    decisions = feed(scheduler, "bad", reports(9.0, STEPS))
    # At 160 images, within the grace period, it is let be; 320 images is the first rung.
    assert decisions[:2] == ["CONTINUE", "STOP"]
    assert feed(scheduler, "best", reports(0.5, STEPS))[:9] == ["CONTINUE"] * 9


def test_time_is_images_seen_and_not_steps(made: SweepPlan) -> None:
    scheduler = make_scheduler(made)
    for place in range(3):
        feed(scheduler, f"good-{place}", reports(1.0, STEPS))
    # With twice the batch, step 20 is at 320 images already.
    assert feed(scheduler, "large", reports(9.0, STEPS, batch_size=16))[0] == "STOP"


def test_a_trial_at_its_last_report_ends_by_itself(made: SweepPlan) -> None:
    scheduler = make_scheduler(made)
    for place in range(3):
        feed(scheduler, f"good-{place}", reports(1.0, STEPS))
    # It comes to both rungs with its last report only.
    assert feed(scheduler, "late", reports(9.0, [200])) == ["CONTINUE"]


def test_a_diverged_trial_does_not_blind_the_scheduler(made: SweepPlan) -> None:
    scheduler = make_scheduler(made)
    feed(scheduler, "diverged", reports(BAD_SCORE, [60], last=60))
    for place in range(3):
        feed(scheduler, f"good-{place}", reports(1.2 - place / 10, STEPS))
    assert feed(scheduler, "fair", reports(2.0, STEPS))[1] == "STOP"
    assert feed(scheduler, "better", reports(0.9, STEPS))[1] == "CONTINUE"


def test_a_new_start_stops_what_the_old_one_would_have_stopped(made: SweepPlan) -> None:
    old, new = make_scheduler(made), make_scheduler(made)
    histories = [(2.0, 1.9), (1.0, 0.8), (1.5, 1.1), (3.0, 2.9)]
    for number, scores in enumerate(histories):
        points = curve(*scores).points
        last = points[-1]
        feed(old, str(number), [as_report(p.step, p.images_seen, p.score, is_last=False) for p in points])
        outcome = Outcome(status="stopped", reason="", score=last.score, step=last.step, images_seen=last.images_seen)
        replay(new, number, points, outcome)
    for place, score in enumerate((0.7, 0.9, 1.3, 5.0)):
        assert feed(old, f"a{place}", reports(score, STEPS)) == feed(new, f"b{place}", reports(score, STEPS))
    assert feed(make_scheduler(made), "first", reports(5.0, STEPS)) == ["CONTINUE"] * 10
    assert "STOP" in feed(new, "later", reports(5.0, STEPS))


def test_without_early_stopping_nothing_is_stopped(tmp_path: Path) -> None:
    assert type(make_scheduler(plan(tmp_path, "--no-early-stopping"))) is FIFOScheduler


def test_new_trials_are_written_down_before_they_start(tmp_path: Path) -> None:
    folder = SweepFolder(plan(tmp_path, "--num-samples", "4"), "f")
    proposer = make_proposer("random", folder.plan.space, 0)
    search = SweepSearch(folder, proposer, [], 0)
    assert [search.suggest(name) for name in "ab"] == [{"number": 0}, {"number": 1}]
    known = folder.trials()
    assert [trial.values for trial in known] == [proposer.propose(0), proposer.propose(1)]
    # A second start: trial 1 has not ended, and two are new.
    search = SweepSearch(folder, proposer, [1], 2)
    assert [search.suggest(name) for name in "abcd"] == [{"number": 1}, {"number": 2}, {"number": 3}, "FINISHED"]
    assert folder.trials()[:2] == known and len(folder.trials()) == 4


class Told:
    """A proposer that keeps what it is told."""

    def __init__(self) -> None:
        self.scores: dict[int, float] = {}

    def propose(self, number: int) -> dict[str, Any]:
        return {}

    def adopt(self, number: int, values: dict[str, Any]) -> None:
        pass

    def tell(self, number: int, score: float) -> None:
        self.scores[number] = score


def test_the_proposer_is_told_last_scores_but_not_of_failures(tmp_path: Path) -> None:
    told = Told()
    search = SweepSearch(SweepFolder(plan(tmp_path), "f"), told, [3, 5], 6)
    for name in "ab":
        search.suggest(name)
    search.on_trial_complete("b", {"score": 2.5})
    search.on_trial_complete("a", None, error=True)
    assert told.scores == {5: 2.5}


def tuned(number: int, result: dict[str, Any]) -> TuneTrial:
    trial = TuneTrial("t", stub=True, config={"number": number})
    trial.run_metadata.last_result = result
    return trial


def test_how_a_trial_ended_is_written_down(tmp_path: Path) -> None:
    folder, ended = SweepFolder(plan(tmp_path), "f"), {}
    news = SweepNews(folder, ended.__setitem__)
    news.on_trial_complete(1, [], tuned(0, as_report(40, 320, 5.0, is_last=False)))
    stopped = folder.outcome(0)
    assert stopped is not None and (stopped.status, stopped.score, stopped.images_seen) == ("stopped", 5.0, 320)
    # What a trial says of itself counts.
    said = Outcome(status="diverged", reason="gap", score=BAD_SCORE, step=3, images_seen=24)
    write(folder.trial_url(1), OUTCOME, said)
    news.on_trial_complete(1, [], tuned(1, as_report(3, 24, BAD_SCORE, is_last=True)))
    # A trial whose process died keeps its scores so far, and is tried again.
    write(folder.trial_url(2), CURVE, curve(3.0, 2.0))
    news.on_trial_error(1, [], tuned(2, {}))
    assert ended[1] == said and ended[2].status == "failed"
    assert (ended[2].score, ended[2].step) == (2.0, 40)
    assert folder.outcome(2) is None
    assert end_of(folder, 3, "failed", "never began").score == BAD_SCORE


def test_a_trial_is_a_run_of_its_own_in_the_sweeps_folder(tmp_path: Path) -> None:
    folder = SweepFolder(plan(tmp_path), "f")
    run = trial_config(folder, Trial(number=12, values={"mcmc.level_scale": {"power": 0.0}}))
    assert f"{run.storage}/{run.run_name}" == folder.trial_url(12) == f"{tmp_path}/s/s-0012"
    assert run.experiment.mcmc.level_scale_power == 0.0
    assert run.experiment.train.num_steps == 200
