"""What a run exports while it steps, while no step ends, and when its job ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from drl_dist.common.errors import UserError
from drl_dist.common.program import Stopped
from drl_dist.jobs.common import prometheus as exported
from drl_dist.jobs.common.prometheus import Exporter, job_exported
from drl_dist.jobs.likelihood import driver as likelihood_driver
from drl_dist.jobs.likelihood.options import LikelihoodOptions
from drl_dist.jobs.sweep import driver as sweep_driver
from drl_dist.jobs.train import metrics as train_metrics
from drl_dist.jobs.train.faults.restarts import CheckpointTimes
from drl_dist.jobs.train.metrics import Clock, Exports
from drl_dist.tracking.metrics import find_metric
from tests.sweeps.makers import plan


class Kept:
    """In the place of Ray's gauges and counters: who was set to what, how often."""

    values: dict[str, list[float]]

    def __init__(self, name: str, _description: str, tag_keys: tuple[str, ...]) -> None:
        assert tag_keys == ("run",)
        self._name = name

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tags == {"run": "church"}
        self.values.setdefault(self._name.removeprefix("drl_"), []).append(value)

    inc = set


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[float]]]:
    values: dict[str, list[float]] = {}
    monkeypatch.setattr(Kept, "values", values, raising=False)
    monkeypatch.setattr(exported, "Gauge", Kept)
    monkeypatch.setattr(exported, "Counter", Kept)
    yield values
    assert not [thread for thread in threading.enumerate() if thread.name == "exporter"]


def step(number: int, seconds: float, wait: float = 0.0) -> Any:
    return SimpleNamespace(
        step=number,
        num_steps=100,
        seconds=seconds,
        wait_seconds=wait,
        images_seen=8 * number,
        metrics=lambda: {"loss": 0.5, "grad_norm": 2.0, "bad_samples": 0.0},
    )


def test_what_was_set_once_is_exported_again_until_it_is_closed(kept: dict[str, list[float]]) -> None:
    with Exporter("church", seconds=0.01) as exporter:
        exporter.set(step=3)
        time.sleep(0.3)
        assert len(kept["step"]) > 5
        exporter.set(step=4)
    assert kept["step"][-1] == 4
    number = len(kept["step"])
    time.sleep(0.1)
    assert len(kept["step"]) == number
    with Exporter("church") as exporter, pytest.raises(ValueError, match="steps is not exported"):
        exporter.set(steps=1)


def test_a_run_that_hangs_tells_of_its_last_step(kept: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=1000.0)
    fake = SimpleNamespace(time=lambda: clock.time, monotonic=lambda: clock.time)
    monkeypatch.setattr(train_metrics, "time", fake)
    with Exporter("church", seconds=100) as exporter:
        exports = Exports(
            exporter,
            Clock(),
            started=900.0,
            first_step=10,
            backlog=lambda: {"spool_unsent_bytes": 5.0},
            log=lambda _step, _values: None,
            log_every=1000,
        )
        # Nothing that looks like a step, or like a checkpoint, before there is one.
        assert exports.look().keys() == {"checkpoint_stall_fraction", "spool_unsent_bytes"}
        # The first step compiles: it is not how long one takes.
        clock.time += 60
        exports.on_step(step(11, 60.0), cast(Any, None))
        assert "goodput" not in exports.look()
        for number in range(12, 32):
            clock.time += 2
            exports.on_step(step(number, 2.0, wait=0.5), cast(Any, None))
        looked = exports.look()
        assert looked["step_timestamp_seconds"] == 1100
        assert looked["images_per_second"] == 8 / 2
        assert looked["goodput"] == pytest.approx(21 * 2 / 200)
        clock.time += 800
        hung = exports.look()
        assert hung["step_timestamp_seconds"] == 1100
        assert hung["images_per_second"] == 8 / 800
        assert hung["goodput"] == pytest.approx(21 * 2 / 1000)
    assert kept["step"][-1] == 31
    assert kept["data_wait_fraction"][-1] == 0.25


def test_what_the_tracker_is_given_too_is_in_the_table_of_metrics(kept: dict[str, list[float]]) -> None:
    logged: set[str] = set()
    with Exporter("church", seconds=100) as exporter:
        exports = Exports(
            exporter,
            Clock(),
            started=time.time(),
            first_step=10,
            backlog=dict,
            log=lambda _step, values: logged.update(values),
            log_every=1,
        )
        for number in (11, 12):
            exports.on_step(step(number, 2.0), cast(Any, None))
    assert "goodput" in logged
    assert all(metric is not None and metric.runs == "training" for metric in map(find_metric, logged))


def test_a_job_counts_as_ended_if_it_ended_as_it_should(kept: dict[str, list[float]]) -> None:
    before = time.time()
    with job_exported("church"):
        pass
    assert kept["ended"] == [1]
    assert before <= kept["started_timestamp_seconds"][-1] <= time.time()
    for error in (Stopped("SIGTERM"), KeyboardInterrupt()):
        kept.clear()
        with pytest.raises(type(error)), job_exported("church"):
            raise error
        assert kept["ended"] == [1]
    for error in (UserError("data", got=1, expected=2, remedy="mend"), RuntimeError("broken")):
        kept.clear()
        with pytest.raises(type(error)), job_exported("church"):
            raise error
        assert "ended" not in kept


def assert_end_is_exported(kept: dict[str, list[float]], run: Callable[[], int], work: Any) -> None:
    """It is if the work ends, and not if it breaks."""
    assert run() == 0
    assert kept["ended"] == [1] and "started_timestamp_seconds" in kept
    kept.clear()
    work.side_effect = RuntimeError("broken")
    with pytest.raises(RuntimeError):
        run()
    assert "ended" not in kept and "started_timestamp_seconds" in kept


def without_cluster(monkeypatch: pytest.MonkeyPatch, module: ModuleType, names: Sequence[str]) -> None:
    """Stand in for everything but the order of what happens."""
    monkeypatch.setattr(module, "cluster", lambda **_: nullcontext())
    monkeypatch.setattr(module, "check_capacity", lambda *_, **__: None)
    for name in names:
        monkeypatch.setattr(module, name, MagicMock())


def test_a_likelihood_job_exports_that_it_ended(kept: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    module = likelihood_driver
    prepared = ("load_model", "open_index", "check_count", "likelihood_request", "LikelihoodOutput")
    without_cluster(monkeypatch, module, (*prepared, "_make", "_finish"))
    output = cast(Any, module.LikelihoodOutput).return_value
    output.finished_report.return_value = None
    output.finished.return_value = {}
    cast(Any, module.likelihood_request).return_value.tasks.return_value = [0]
    options = LikelihoodOptions(model="m", data="d", out="church")
    assert_end_is_exported(kept, lambda: module.likelihood_run(options), module._make)


def test_a_sweep_exports_that_it_ended(
    kept: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = sweep_driver
    prepared = ("prepare_run", "connect", "open_sweep", "_limits", "_rescore_images")
    without_cluster(monkeypatch, module, (*prepared, "_run_trials", "_rescore"))
    cast(Any, module.prepare_run).return_value.index.fingerprint = "f"
    cast(Any, module.connect).return_value.tracking_uri = "http://host"
    monkeypatch.setattr(module, "status_kept", lambda *_: nullcontext())
    monkeypatch.setattr(module, "sweep_rows", lambda *_: [])
    monkeypatch.setattr(module, "finish_sweep", lambda *_: 0)
    swept = plan(tmp_path, "--sweep-name", "church")
    assert_end_is_exported(kept, lambda: module.sweep_run(swept), module._run_trials)


def test_ray_s_controller_tells_of_checkpoints(kept: dict[str, list[float]]) -> None:
    times = CheckpointTimes("church")
    times.after_report(None, [{"step": 1}], None)
    assert "checkpoint_timestamp_seconds" not in kept
    before = time.time()
    times.after_report(None, [{"step": 2}], cast(Any, object()))
    exporter = times._exporter
    assert exporter is not None
    exporter.close()
    assert before <= kept["checkpoint_timestamp_seconds"][-1] <= time.time()
