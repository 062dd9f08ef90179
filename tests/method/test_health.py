"""The judgement of a run by its metrics, on series of real runs of digits and on made ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import pytest

from drl_dist.training.health import ADVICE, CONDITIONS, LEVELS, LIMITS, is_watched, judge
from drl_dist.training.health_watch import HealthWatch, seen_by
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState
from tests.support import ROOT

Series = dict[str, dict[int, float | None]]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Series]:
    """Metrics of the runs of docs/health.md: good and bad at T = 6, and the U-Net with its switch of objectives."""
    found = json.loads((ROOT / "tests/method/health_series.json").read_text())
    return {
        run: {name: {int(step): value for step, value in values.items()} for name, values in series.items()}
        for run, series in found.items()
    }


def until(series: Mapping[str, Mapping[int, float | None]], last: int) -> Series:
    return {name: {step: value for step, value in values.items() if step <= last} for name, values in series.items()}


def flat(num_steps: int = 60, **values: float) -> Series:
    named = {"loss": 1.0, "grad_norm": 1.0} | {name.replace("__", "/"): value for name, value in values.items()}
    return {name: dict.fromkeys(range(1, num_steps + 1), value) for name, value in named.items()}


def test_a_good_run_is_healthy_all_the_way(recorded: dict[str, Series]) -> None:
    for run in ("good", "unet"):
        steps = sorted(recorded[run]["loss"])
        for last in steps:
            health = judge(until(recorded[run], last))
            assert health.name in ("healthy", "too early"), f"{run} at step {last}: {health}"
        assert judge(recorded[run]).name == "healthy"


def test_a_run_with_steps_that_are_too_large_diverges_before_it_ends(recorded: dict[str, Series]) -> None:
    # The run ended itself at step 60, when its chains moved by 29 per pixel.
    health = judge(until(recorded["bad"], 40))
    assert health.name == "diverging" and "log_density_gap/level_" in str(health)
    assert "smaller chain steps" in health.advice
    last = judge(recorded["bad"])
    assert [condition for condition, _ in last.findings] == ["diverging", "saturating"]
    assert "96.8% of the samples' pixels are at 0 or 255" in str(last) and "(the data: 58.5%)" in str(last)


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_a_number_that_is_not_finite_is_a_divergence_at_once(lost: float | None) -> None:
    series = flat(3)
    series["grad_norm"][2] = lost
    assert str(judge(series)) == "diverging: grad_norm is not finite at step 2"
    # Long ago, and the run has come back since.
    series = flat(60)
    series["grad_norm"][2] = lost
    assert judge(series).name == "healthy"


def test_each_condition_has_its_limit() -> None:
    assert judge(flat(displacement__level_0=2.0)).name == "healthy"
    assert "chains move by 2.1 per pixel" in str(judge(flat(displacement__level_0=2.1)))
    # The mean over levels counts.
    assert judge(flat(displacement__level_0=3.9, displacement__level_1=0.1)).name == "healthy"
    assert judge(flat(noise_error__level_0=2.1)).name == "diverging"
    assert judge(flat(noise_error__level_0=1.9)).name == "healthy"
    assert judge(flat(data_wait_fraction=0.2)).name == "healthy"
    assert str(judge(flat(data_wait_fraction=0.25))) == "data-bound: steps wait for data 25% of the time, more than 20%"
    assert judge(flat(num_steps=LIMITS.grace_rows - 1, data_wait_fraction=0.9)).name == "too early"
    gaps = flat(log_density_gap__level_0=1.0)
    gaps["log_density_gap/level_0"] |= dict.fromkeys(range(41, 61), -10.1)
    assert "level_0 is 10.1 nats, more than 10 times the 1 of" in str(judge(gaps))
    gaps["log_density_gap/level_0"] |= dict.fromkeys(range(41, 61), -9.9)
    assert judge(gaps).name == "healthy"


def test_saturation_is_held_against_the_data() -> None:
    series = flat()
    series["saturated_fraction"] = {0: 1.0, 50: 0.95}
    series["data_saturated_fraction"] = {0: 0.6}
    assert judge(series).name == "healthy"
    series["saturated_fraction"][50] = 0.97
    assert judge(series).name == "saturating"
    series["data_saturated_fraction"] = {0: 0.0}
    series["saturated_fraction"][50] = 0.91
    assert judge(series).name == "saturating"
    # White noise on the way to an image: a network that was never trained.
    series["saturated_fraction"] = {0: 1.0}
    assert judge(series).name == "healthy"


def test_silence_is_stale_by_the_pace_of_the_run() -> None:
    assert judge(flat(), silent_seconds=299).name == "healthy"
    assert str(judge(flat(), silent_seconds=301)) == "stale: no step for 301 s, more than 300 s"
    assert judge(flat(), silent_seconds=1999, interval_seconds=100).name == "healthy"
    assert judge(flat(), silent_seconds=2001, interval_seconds=100).name == "stale"
    assert judge({}, silent_seconds=301).name == "stale"


def test_there_is_advice_and_a_number_for_each() -> None:
    assert set(ADVICE) == set(CONDITIONS) and set(LEVELS) == {*CONDITIONS, "healthy", "too early"}
    assert is_watched("displacement/level_3") and is_watched("loss") and not is_watched("learning_rate")


def test_the_watch_speaks_when_something_changes_and_rarely_again(capsys: pytest.CaptureFixture[str]) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    told: list[str] = []
    now = [0.0]
    watch = HealthWatch(
        lambda step, numbers: logged.append((step, numbers)), 1, tell=told.append, clock=lambda: now[0], prefix="a: "
    )
    lines: list[str] = []

    def step(number: int, move: float, last: int = 1000) -> None:
        metrics = {"loss": 1.0, "grad_norm": 1.0, "displacement/level_0": move}
        report = SimpleNamespace(step=number, num_steps=last, metrics=lambda: metrics)
        watch.on_step(cast(StepReport, report), cast(TrainState, None))
        lines.extend(capsys.readouterr().out.splitlines())

    for number in range(1, 51):
        step(number, 0.5)
    assert lines == [] and told == ["healthy"]
    for number in range(51, 91):
        step(number, 5.0)
    assert len(lines) == 1 and lines[0].startswith("a: step 60/1000: health: diverging: chains move by ")
    assert lines[0].endswith("or --max-rollbacks (docs/health.md)")
    now[0] = 601.0
    for number in range(91, 111):
        step(number, 5.0)
    assert len(lines) == 2 and lines[1].startswith("a: step 100/1000: health: diverging")
    for number in range(111, 151):
        step(number, 0.5)
    assert lines[2:] == ["a: step 130/1000: health: healthy"] or lines[2:] == ["a: step 120/1000: health: healthy"]
    assert [numbers["health"] for number, numbers in logged if number in (50, 60, 150)] == [0.0, 4.0, 0.0]
    assert told[0] == "healthy" and told[1].startswith("diverging") and told[2:] == ["healthy"]
    # The memory does not grow with the run.
    assert all(len(values) <= LIMITS.first_rows + LIMITS.grace_rows for values in watch._series.values())


def test_the_watch_sees_what_others_log() -> None:
    watch = HealthWatch(lambda *_: None, 1)
    passed: list[dict[str, float]] = []
    log = seen_by(watch, lambda _, numbers: passed.append(numbers))
    log(3, {"saturated_fraction": 0.5, "score/fid": 2.0})
    assert passed == [{"saturated_fraction": 0.5, "score/fid": 2.0}]
    assert watch._series == {"saturated_fraction": {3: 0.5}}
