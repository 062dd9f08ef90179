"""The alert rules, evaluated by Prometheus over hours made of series that were recorded from real runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from drl_dist.jobs.common.prometheus import COUNTED, EXPORTED
from tests.cluster.stories import OF_JOBS, RECORDED, SCRAPE, Part, Story, firing
from tests.support import ROOT

GOOD = {"goodput": 0.9}
EVERY = range(0, 601, 5)
STARTED = Part(("started", 0), ("worker killed", -5), values=GOOD)
BOTH_STOPPED = Part(("both stopped", 0), ("both killed", 0), 180, values=GOOD)
HUNG = Part(("worker stopped", 0), ("both stopped", 0), 60, values=GOOD)
ENDED = Part(("run asked to stop", 0), ("run ended", 25), values=GOOD)


def steps(minutes: float, frozen: Sequence[str] = (), **values: float) -> Part:
    """Training continues."""
    # Between the restart's gap and the fault that came next.
    return Part(("worker stopped", -25), ("worker stopped", 0), minutes, values=GOOD | values, frozen=frozen)


def restarts(number: int, every: float, frozen: Sequence[str] = (), **values: float) -> list[Part]:
    """A worker is killed again and again."""
    killed = Part(("worker killed", 0), ("worker stopped", 0), None, values=GOOD | values, frozen=frozen)
    return [part for _ in range(number) for part in (killed, steps(every - 1.5, frozen, **values))]


def alerts(folder: Path, *stories: Story) -> dict[tuple[str, str], list[float]]:
    """When each alert fires, in minutes, looked at every five."""
    minutes = [minute for minute in EVERY if minute * 60 <= max(story.end for story in stories) * SCRAPE]
    found: dict[tuple[str, str], list[float]] = {}
    for minute, those in firing(folder, stories, minutes).items():
        for one in those:
            found.setdefault(one, []).append(minute)
    return found


def test_recorded_series_are_those_of_the_code() -> None:
    trained = {name for name in EXPORTED if not name.startswith("drl_sampl")}
    names = {f"{name}_total" if name in COUNTED else name for name in trained}
    assert {one["name"] for one in RECORDED["series"]} == names
    for one in RECORDED["series"]:
        assert {"run", "WorkerId", "SessionName"} <= one["labels"].keys()


def test_a_hung_worker_s_gauges_stay_and_a_stopped_one_s_go() -> None:
    hung, gone, back = (RECORDED["events"][name] / RECORDED["seconds"] for name in HANGS)
    told = [
        one["values"]
        for one in RECORDED["series"]
        if one["name"] == "drl_step_timestamp_seconds" and one["labels"]["WorkerId"] not in OF_JOBS
    ]
    at_hang, at_end, after = ([values[int(look)] for values in told] for look in (hung + 4, gone - 1, back - 1))
    (first,), (last,) = ([value for value in values if value is not None] for values in (at_hang, at_end))
    assert first == last
    assert set(after) == {None}


HANGS = ("worker stopped", "both stopped", "both killed")


@pytest.mark.slow
def test_a_hang_is_seen(tmp_path: Path) -> None:
    found = alerts(tmp_path, Story([STARTED, steps(30), HUNG]))
    assert found.keys() == {("TrainingStands", "church")}
    # The hang begins at 31 min.
    assert found["TrainingStands", "church"][0] in (65, 70)
    assert found["TrainingStands", "church"][-1] == 90


@pytest.mark.slow
def test_a_run_without_workers_is_seen_until_it_steps_again(tmp_path: Path) -> None:
    again = Part(("both killed", 0), ("run asked to stop", 0), 30, values=GOOD)
    found = alerts(tmp_path, Story([STARTED, steps(30), BOTH_STOPPED, again]))
    stands, old = found.pop(("TrainingStands", "church")), found.pop(("CheckpointTooOld", "church"))
    assert found == {}
    assert stands[0] in (65, 70) and stands[-1] in (210, 215)
    assert stands == list(range(int(stands[0]), int(stands[-1]) + 1, 5))
    assert old[0] in (160, 165, 170)


@pytest.mark.slow
@pytest.mark.parametrize("every", [20, 100])
def test_an_old_checkpoint_is_seen_over_restarts(tmp_path: Path, every: int) -> None:
    frozen = ["checkpoint_timestamp_seconds"]
    found = alerts(tmp_path, Story([STARTED, *restarts(240 // every, every, frozen)]))
    assert found.keys() == {("CheckpointTooOld", "church")}
    assert found["CheckpointTooOld", "church"][0] in (130, 135)


@pytest.mark.slow
@pytest.mark.parametrize("every", [7, 40])
def test_low_goodput_is_seen_over_restarts(tmp_path: Path, every: int) -> None:
    found = alerts(tmp_path, Story([STARTED, *restarts(160 // every, every, goodput=0.7)]))
    assert found.keys() == {("GoodputLow", "church")}
    # The sound first minutes count for another quarter of an hour.
    assert found["GoodputLow", "church"][0] in (75, 80)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen", "unsent"), [((), 2e7), (("mlflow_told_timestamp_seconds",), 2e3)], ids=["much", "elsewhere"]
)
def test_an_absent_mlflow_is_seen_over_restarts(tmp_path: Path, frozen: Sequence[str], unsent: float) -> None:
    """On another machine a worker begins with nothing unsent."""
    found = alerts(tmp_path, Story([STARTED, *restarts(6, 25, frozen, spool_unsent_bytes=unsent)]))
    assert found.keys() == {("MlflowAway", "church")}
    assert found["MlflowAway", "church"][0] in (30, 35, 40, 45)


@pytest.mark.slow
def test_waiting_for_data_is_seen_over_restarts(tmp_path: Path) -> None:
    found = alerts(tmp_path, Story([STARTED, *restarts(6, 10, data_wait_fraction=0.2)]))
    assert found.keys() == {("WaitingForData", "church")}
    # A worker that waited at its start and died counts for as long as it lived.
    burst = [STARTED, *restarts(1, 3, data_wait_fraction=0.9), *restarts(2, 60)]
    assert alerts(tmp_path, Story(burst)) == {}


@pytest.mark.slow
def test_a_healthy_run_that_restarts_and_ends_is_silent(tmp_path: Path) -> None:
    story = Story([STARTED, *restarts(4, 40), steps(60), ENDED], quiet_minutes=(10, 240))
    assert alerts(tmp_path, story) == {}


@pytest.mark.slow
def test_a_run_that_hung_and_was_stopped_does_not_alert_for_ever(tmp_path: Path) -> None:
    found = alerts(tmp_path, Story([STARTED, steps(10), HUNG, ENDED], quiet_minutes=(0, 120)))
    assert found.keys() == {("TrainingStands", "church")}
    assert found["TrainingStands", "church"][-1] in (70, 75)


@pytest.mark.slow
def test_a_killed_job_is_seen_until_it_is_started_again(tmp_path: Path) -> None:
    killed = Part(("second run started", 0), ("driver killed", 40), values=GOOD)
    story = Story([killed], "bedroom", of="bedroom", quiet_minutes=(0, 480))
    found = alerts(tmp_path, story)
    assert found.keys() == {("RunGone", "bedroom")}
    # Killed at 4 min; and not for ever.
    assert found["RunGone", "bedroom"][0] == 10
    assert found["RunGone", "bedroom"][-1] in (360, 365)
    again = Story([STARTED, steps(60), ENDED], "bedroom", quiet_minutes=(30, 480))
    assert max(alerts(tmp_path, story, again)["RunGone", "bedroom"]) in (30, 35)


@pytest.mark.slow
def test_two_runs_side_by_side_are_told_apart(tmp_path: Path) -> None:
    healthy = Story([STARTED, *restarts(3, 40)])
    hung = Story([STARTED, steps(10), HUNG, steps(50)], "bedroom")
    assert alerts(tmp_path, healthy, hung).keys() == {("TrainingStands", "bedroom")}


def test_every_rule_has_a_story() -> None:
    names = re.findall(r"alert: (\w+)", (ROOT / "cluster" / "monitoring" / "alerts.yaml").read_text())
    told = Path(__file__).read_text()
    assert all(f'("{name}",' in told for name in names)
