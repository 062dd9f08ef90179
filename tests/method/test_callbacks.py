"""Callbacks of the loop on torch alone: what they print, log and show, and that numbers are read once a step."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from drl_dist.common.images import Panel
from drl_dist.common.waiting import Waiting
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.tree import CheckpointConfig, RunConfig, TrackingConfig
from drl_dist.sampling.labels import wanted
from drl_dist.training import callbacks, loop
from drl_dist.training.callbacks import Metrics, Progress, Samples, Scores, told
from drl_dist.training.generate import draw_together
from drl_dist.training.guard import Interrupt
from drl_dist.training.loop import Callback, StepReport, train
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from drl_dist.training.watch import RunawayGuard
from tests.helpers.steps import EAGER, batch, tiny

STEPS = 3


def run(*called: Callback, num_steps: int = STEPS, stop_at: int | None = None, bad: int = 0) -> TrainState:
    """Train a tiny network with these callbacks, without a process group."""
    experiment = tiny(num_steps=num_steps)
    state = TrainState.create(experiment)

    def request() -> Interrupt:
        return Interrupt.STOP if state.step + 1 == stop_at else Interrupt.NONE

    step = TrainStep(state, experiment, EAGER, request)
    given = [dataclasses.replace(batch(12 * number), bad_samples=bad) for number in range(num_steps)]
    train(step, state, experiment, given, called)
    return state


class Calls:
    """A callback made of a function."""

    def __init__(self, call: Callable[[StepReport], object]) -> None:
        self._call = call

    def on_step(self, report: StepReport, state: TrainState) -> None:
        self._call(report)


READS = ("__bool__", "__float__", "__int__", "cpu", "item", "numpy", "tolist")
"""By which a number leaves the device."""


def test_tensors_become_floats_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def method(self: torch.Tensor, *args: Any, **more: Any) -> Any:
            reads[name] += 1
            return original(self, *args, **more)

        return method

    seen: list[Counter[str]] = []
    logged: list[dict[str, float]] = []
    # As many that read every step as a worker may have.
    asking = [Metrics(lambda _, numbers: logged.append(numbers), 1) for _ in range(3)]
    silent = [Progress(), RunawayGuard(checkpoint_every=100)]
    start, end = Calls(lambda _: reads.clear()), Calls(lambda _: seen.append(reads.copy()))
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    run(start, *asking, *silent, end)
    # One copy to the host, and one list of Python numbers made of it.
    assert seen == [{"cpu": 1, "tolist": 1}] * STEPS
    assert all(type(value) is float for numbers in logged for value in numbers.values())
    seen.clear()
    run(start, Metrics(lambda _, numbers: logged.append(numbers), 2), end)
    # None at steps of which nobody asks anything; the last one is logged too.
    assert [sum(one.values()) for one in seen] == [0, 2, 2]


def test_a_callback_cannot_change_what_the_next_one_gets() -> None:
    logged: list[dict[str, float]] = []
    run(Metrics(lambda _, numbers: numbers.clear(), 1), Metrics(lambda _, numbers: logged.append(numbers), 1))
    assert all(numbers["images_seen"] > 0 for numbers in logged)


def test_metrics_count_damaged_images_from_the_first_step() -> None:
    logged: dict[int, float] = {}
    run(Metrics(lambda step, numbers: logged.update({step: numbers["bad_samples"]}), 1), bad=2)
    assert logged == {1: 2.0, 2: 4.0, 3: 6.0}


def test_progress_prints_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(callbacks, "PROGRESS_SECONDS", 0.0)
    run(Progress(), stop_at=2)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"step 1/{STEPS}: under way"
    assert second == f"step 2/{STEPS}: asked to stop, so a checkpoint is written and training ends"
    assert third.startswith(f"step 2/{STEPS}: loss ") and " images/s, waiting for data " in third
    assert third.endswith(" s left")
    capsys.readouterr()
    run(Progress())
    # Nothing is left.
    assert capsys.readouterr().out.splitlines()[-1].endswith("%")


def test_the_time_left_follows_the_pace_of_the_last_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now)
    progress, state = Progress(), cast(TrainState, None)
    left: dict[int, str] = {}
    for step in range(1, 401):
        # Ten seconds a step, then one.
        now += 10.0 if step <= 100 else 1.0
        report = SimpleNamespace(
            step=step,
            num_steps=1000,
            images_seen=8 * step,
            wait_seconds=0.0,
            result=SimpleNamespace(interrupt=Interrupt.NONE),
            metrics=lambda: {"loss": 1.0},
        )
        progress.on_step(cast(StepReport, report), state)
        if "left" in (line := capsys.readouterr().out):
            left[step] = line.rpartition(", ")[2].strip()
    assert left[100] == "2 h 30 min left"
    # 600 steps of a second each; over the whole run it would be 33 min.
    assert left[400] == "10 min left"


def test_a_step_knows_the_pace_of_the_last_minute() -> None:
    pace = loop._Pace()
    assert pace.after(7, 100.0) is None
    # A hundred quick steps, then slow ones, which soon are all that counts.
    found = [pace.after(step, 100 + (step - 7) / 10) for step in range(8, 108)]
    assert found[-1] == pytest.approx(0.1)
    found = [pace.after(107 + number, 110 + 5.0 * number) for number in range(1, 16)]
    assert found[0] == pytest.approx(15 / 101) and found[-1] == pytest.approx(5)
    assert len(pace._marks) < 16


def test_what_takes_long_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(Waiting, "begin", lambda _, what, *, is_told: begun.append(what))
    waiting = Waiting("run a")
    config = RunConfig(
        experiment=tiny(),
        checkpoint=CheckpointConfig(every_steps=2),
        tracking=TrackingConfig(sample_every_steps=100, score_every_steps=1),
    )
    run(*told(waiting, config, []))
    assert begun == [
        "drawing and scoring images after step 1",
        "making step 2 of 3",
        "drawing and scoring images, writing a checkpoint after step 2",
        "making step 3 of 3",
        "drawing samples, drawing and scoring images, writing a checkpoint after step 3",
        "bringing the last metrics and checkpoints to storage",
    ]


def test_samples_are_drawn_when_due_and_the_last_ones_are_of_the_last_step() -> None:
    shown: dict[tuple[str, int], Panel] = {}

    def show(name: str, step: int, panel: Panel) -> None:
        shown[name, step] = panel

    state = run(Samples(tiny(), EAGER, 2, num_samples=4, show=show))
    assert list(shown) == [(name, step) for step in (2, 3) for name in ("samples", "progression")]
    images = draw_together(tiny(), EAGER, state, 4, whole_way=False)[-1]
    assert torch.equal(shown["samples", 3].images, images)
    # 4 rows of 7 levels, the last of which are the samples.
    way = shown["progression", 3]
    assert way.columns == 7 and way.images.shape == (28, *images.shape[1:]) and way.images.dtype == torch.uint8
    assert torch.equal(way.images[6::7], images) and not torch.equal(way.images[::7], images)


def test_a_sheet_has_a_row_of_each_class() -> None:
    shown: dict[str, Panel] = {}
    condition = ConditionConfig(kind="class", names=("a", "b", "c"))
    experiment = dataclasses.replace(tiny(), condition=condition)
    state = TrainState.create(experiment)
    with torch.no_grad():
        state.ema.shadow["condition.table"].normal_(std=5.0, generator=torch.Generator().manual_seed(0))

    def show(name: str, step: int, panel: Panel) -> None:
        shown[name] = panel

    Samples(experiment, EAGER, 2, num_samples=7, show=show).draw(0, state)
    samples, way = shown["samples"], shown["progression"]
    assert samples.columns == 2 and samples.row_names == way.row_names == ("a", "b", "c") and len(samples.images) == 6
    labels = wanted(condition, label="a:2,b:2,c:2")
    expected = draw_together(experiment, EAGER, state, 6, whole_way=False, labels=labels)[-1]
    assert torch.equal(samples.images, expected)
    # The first of each class, at the end of its way.
    assert torch.equal(way.images[6::7], expected[::2])
    # Without room for all classes, images have none.
    Samples(experiment, EAGER, 2, num_samples=2, show=show).draw(0, state)
    assert shown["samples"].row_names == () and len(shown["samples"].images) == 2


def test_scores_reach_the_log_and_images_are_looked_at_before(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[object] = []

    def score(images: torch.Tensor) -> dict[str, float]:
        order.append(("scored", tuple(images.shape)))
        return {"score/fid": 3.25}

    scores = Scores(
        tiny(),
        EAGER,
        2,
        num_images=5,
        score=score,
        log=lambda step, numbers: order.append((step, numbers)),
        look=lambda step, images_seen, images: order.append((step, images_seen, len(images))),
        prefix="trial-3: ",
    )
    run(scores, num_steps=2)
    assert order == [(2, 24, 5), ("scored", (5, 1, 8, 8)), (2, {"score/fid": 3.25})]
    assert "trial-3: step 2/2: score/fid 3.25 of 5 images, drawn and scored in " in capsys.readouterr().out
