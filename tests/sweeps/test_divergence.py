"""Runs that run away end themselves, healthy ones do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from drl_dist.config.tree import EngineConfig, RunConfig, TrackingConfig
from drl_dist.jobs.sweep import trial
from drl_dist.jobs.sweep.record import CURVE, OBJECTIVE, Curve, read
from drl_dist.training.guard import DivergedError
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState
from drl_dist.training.step import StepResult, TrainStep
from drl_dist.training.watch import DivergenceLimits, DivergenceWatch, RunawayError, RunawayGuard
from tests.helpers.steps import batch, tiny

LIMITS = DivergenceLimits(max_gap_growth=10, max_displacement=2, max_saturated=0.9, grace_images=100)
GAP, MOVE = "log_density_gap/level_{}", "displacement/level_{}"


def test_a_gap_that_outgrows_the_first_steps_ends_the_run() -> None:
    watch = DivergenceWatch(LIMITS)
    for step in range(1, 11):
        watch.see_step(step, 1, {GAP.format(0): -50.0 + step, GAP.format(1): 1.0})
    assert watch.first_gaps == {GAP.format(0): 49.0, GAP.format(1): 1.0}
    watch.see_step(11, 1, {GAP.format(0): 489.0, GAP.format(1): -9.9, GAP.format(2): 1e9})
    for name, value in ((GAP.format(0), -491.0), (GAP.format(1), 10.1)):
        with pytest.raises(RunawayError, match=rf"at step 12: {name} of .* nats, more than") as caught:
            watch.see_step(12, 1, {name: value})
        assert isinstance(caught.value, DivergedError) and caught.value.step == 12
    # A later start knows what the first one saw.
    resumed = DivergenceWatch(LIMITS, dict(watch.first_gaps), watch.num_first_steps)
    with pytest.raises(RunawayError):
        resumed.see_step(300, 1, {GAP.format(1): 10.1})


def test_the_first_steps_are_those_that_report_gaps() -> None:
    watch = DivergenceWatch(LIMITS)
    for step in range(1, 781):
        watch.see_step(step, 1, {"noise_error/level_0": 0.5})
    for step in range(781, 787):
        watch.see_step(step, 1, {GAP.format(0): 3.0})
    # A later start sees the rest of them.
    resumed = DivergenceWatch(LIMITS, dict(watch.first_gaps), watch.num_first_steps)
    for step in range(787, 791):
        resumed.see_step(step, 1, {GAP.format(0): 5.0})
    assert (resumed.first_gaps, resumed.num_first_steps) == ({GAP.format(0): 5.0}, 10)
    resumed.see_step(791, 1, {GAP.format(0): 49.0})
    with pytest.raises(RunawayError, match="more than 50"):
        resumed.see_step(792, 1, {GAP.format(0): 51.0})
    assert resumed.first_gaps == {GAP.format(0): 5.0}


@pytest.mark.parametrize(
    ("stored", "step", "known"),
    [
        ('"first_gaps": {"a": 2.0}, "num_first_steps": 6', 786, ({"a": 2.0}, 6)),
        ('"first_gaps": {}, "num_first_steps": 0', 780, ({}, 0)),
        ('"first_gaps": {"a": 2.0}', 4, ({"a": 2.0}, 4)),  # of an earlier version
        ('"first_gaps": {"a": 2.0}', 300, ({"a": 2.0}, 10)),
        ('"first_gaps": {}', 300, ({}, 0)),
        ('"first_gaps": {"a": 2.0}, "num_first_steps": 6', 0, ({}, 0)),
    ],
)
def test_a_trial_remembers_its_first_gaps(
    stored: str, step: int, known: tuple[dict[str, float], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "broadcast_from_rank_zero", lambda value: value)
    run = RunConfig(
        experiment=tiny(), storage=str(tmp_path), run_name="r", tracking=TrackingConfig(score_every_steps=2)
    )
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / CURVE).write_text(f'{{"points": [], {stored}}}')
    watch = trial.TrialScores.resumed(LIMITS, run, rank=0, step=step).watch
    assert (watch.first_gaps, watch.num_first_steps) == known


def test_a_trial_keeps_its_first_gaps_with_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial.ray.train, "report", lambda metrics: None)
    watch = DivergenceWatch(LIMITS, {GAP.format(0): 5.0}, 4)
    scores = trial.TrialScores(watch, str(tmp_path), 1, Curve())
    scores.telling(lambda step, numbers: None)(20, {OBJECTIVE: 1.0})
    scores.on_step(report(20, 0.1), TrainState.create(tiny()))
    kept = read(str(tmp_path), CURVE, Curve)
    assert kept is not None and (kept.first_gaps, kept.num_first_steps) == ({GAP.format(0): 5.0}, 4)


def test_chains_and_pixels_are_looked_at_after_the_grace_period() -> None:
    watch, white = DivergenceWatch(LIMITS), torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    far = {MOVE.format(0): 1.0, MOVE.format(1): 3.2}
    watch.see_step(20, 100, far)
    watch.see_images(20, 100, white)
    watch.see_step(21, 101, {MOVE.format(0): 1.0, MOVE.format(1): 2.9})
    with pytest.raises(RunawayError, match=r"chains that move by 2.1 per pixel, more than 2"):
        watch.see_step(21, 101, far)
    with pytest.raises(RunawayError, match=r"100.0% of generated pixels at the ends of the range, more than 90.0%"):
        watch.see_images(21, 101, white)
    grey = white.clone()
    grey[:, :, 0] = 0
    grey[0, :, 1] = 7
    grey[0, :, 2, :5] = 254
    watch.see_images(21, 101, grey)  # 13 of 128 pixels are no ends: 89.8 % are
    grey[0, :, 2, 4] = 255
    with pytest.raises(RunawayError, match=r"90\.6% of generated pixels"):
        watch.see_images(21, 101, grey)


def test_the_error_comes_through_processes_whole() -> None:
    kind, arguments = RunawayError(7, "why").__reduce__()
    assert callable(kind) and isinstance(arguments, tuple)
    again = kind(*arguments)
    assert (type(again), again.step, str(again)) == (RunawayError, 7, "training diverged at step 7: why")


@pytest.mark.slow
@pytest.mark.parametrize(("multiplier", "is_diverging"), [(1.0, False), (10.0, True)])
def test_a_step_size_far_too_large_is_found(multiplier: float, is_diverging: bool) -> None:
    """Measured: at ten times c_t, gaps grow a thousandfold within a hundred steps while every number stays finite."""
    experiment = tiny()
    mcmc = dataclasses.replace(experiment.mcmc, level_scale_multiplier=multiplier, num_chain_steps=20)
    experiment = dataclasses.replace(
        experiment, mcmc=mcmc, optim=dataclasses.replace(experiment.optim, warmup_steps=20)
    )
    state = TrainState.create(experiment)
    step = TrainStep(state, experiment, EngineConfig(compile="never", cuda_graph=False))
    watch = DivergenceWatch(dataclasses.replace(LIMITS, grace_images=60 * 12))
    found = None
    for index in range(75):
        try:
            result = step(batch(12 * index))
            watch.see_step(state.step, 12 * state.step, result.metrics())
        except RunawayError as error:
            found = error
            break
    assert (found is not None) == is_diverging, found
    for value in state.network.state_dict().values():
        assert torch.isfinite(value).all()


def report(step: int, move: float, num_steps: int = 1000) -> StepReport:
    """Of a step whose chains moved so far at one of two levels."""
    told = torch.tensor([[0.5 * 3, move * 4], [3.0, 4.0]])
    result = StepResult(torch.zeros(()), torch.ones(()), ("displacement",), told, 1e-4)
    return StepReport(step, num_steps, result, 0.0, 1.0, 32 * step, 32.0, 960.0)


def test_an_ordinary_run_ends_before_a_checkpoint_of_chains_that_ran_away() -> None:
    guard, state = RunawayGuard(checkpoint_every=7), TrainState.create(tiny())
    for step in (7, 10, 20, 1000):
        guard.on_step(report(step, 9.9), state)
        with pytest.raises(RunawayError, match=rf"at step {step}: chains move by 10.1 per pixel, .*--start-from"):
            guard.on_step(report(step, 10.1), state)
    # Reading a step's numbers waits for the device: not every step is read.
    guard.on_step(report(11, 1e6), state)
