"""A run that is started while it is at work: refused, but not one whose process was killed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drl_dist.checkpoints.run_status import STATUS, RunStatus, read_status, status_recorded, write_status
from drl_dist.common.errors import UserError
from drl_dist.common.process_identity import ProcessIdentity, this_process
from drl_dist.config.tree import RunConfig
from drl_dist.console.command import run as console
from drl_dist.jobs.train import driver
from drl_dist.jobs.train import single_device as train_single_device
from drl_dist.jobs.train.driver import PreparedRun, train_run
from drl_dist.jobs.train.options import parse_train_options
from drl_dist.jobs.train.single_device import train_on_one_device
from drl_dist.tracking.files.table import MetricsTable
from tests.helpers.forked import real_python

PROGRAM = (
    "import dataclasses, json, time; from drl_dist.common.process_identity import this_process\n"
    "print(json.dumps(dataclasses.asdict(this_process())), flush=True)\n"
    "time.sleep(600)"
)


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], ProcessIdentity]]:
    """Another process of this machine, which stands for the first start of the run."""
    with subprocess.Popen([real_python(), "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, ProcessIdentity(**json.loads(process.stdout.readline()))
        process.kill()


@pytest.fixture
def begun(tmp_path: Path) -> RunConfig:
    """A run of one step that has made it, and has another one to make."""
    np.save(tmp_path / "images.npy", np.zeros((8, 1, 8, 8), np.uint8))
    run = options(tmp_path, 1)
    assert train_on_one_device(run) == 0
    return options(tmp_path, 2)


def options(folder: Path, num_steps: int) -> RunConfig:
    words = {
        "--data": folder / "images.npy",
        "--storage": folder,
        "--run-name": "a",
        "--model.width": 4,
        "--model.time-hidden-dim": 8,
        "--mcmc.num-chain-steps": 2,
        "--train.batch-size": 4,
        "--train.num-steps": num_steps,
        "--tracking.num-samples": 2,
        "--tracking.sample-every-steps": 100,
        "--engine.threads-per-worker": 1,
    }
    arguments = [str(word) for pair in words.items() for word in pair]
    return parse_train_options("digits", ["--without-ray", "--setting", "t6", *arguments])[0]


def at_work(run: RunConfig, process: ProcessIdentity | None, *, ago: float = 0.0) -> None:
    write_status(run.url, RunStatus(state="running", since=time.time() - ago, starts=1, process=process))


def contents(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_run_at_work_is_not_started_again_and_a_killed_one_is_at_once(
    begun: RunConfig,
    other: tuple[subprocess.Popen[str], ProcessIdentity],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process, identity = other
    at_work(begun, identity)
    before = contents(begun.url)
    with pytest.raises(UserError, match=rf"a: got a run that is at work in process {process.pid} of this machine, exp"):
        train_on_one_device(begun)
    # With Ray in the same way, before anything is started.
    with monkeypatch.context() as patch:
        prepared = PreparedRun(run=begun, index=None, newest=None)  # type: ignore[arg-type]
        patch.setattr(driver, "prepare_run", lambda *_: prepared)
        patch.setattr(driver, "fit_run", lambda *_: pytest.fail("it was started"))
        with pytest.raises(UserError, match="got a run that is at work in process"):
            train_run(begun)
    assert contents(begun.url) == before
    assert console(["status", begun.url]) == 0
    assert "a (digits): running" in capsys.readouterr().out
    process.kill()
    process.wait()
    assert console(["status", begun.url]) == 1
    assert "a (digits): killed" in capsys.readouterr().out
    assert train_on_one_device(begun) == 0
    status = read_status(begun.url)
    assert status is not None and (status.state, status.starts, status.process) == ("finished", 2, None)


def test_of_two_starts_in_one_moment_the_later_ends(
    begun: RunConfig, other: tuple[subprocess.Popen[str], ProcessIdentity], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins while this one makes its network."""
    make = train_single_device._restore

    def meanwhile(*words: object) -> None:
        make(*words)  # type: ignore[arg-type]
        at_work(begun, other[1])

    monkeypatch.setattr(train_single_device, "_restore", meanwhile)
    with pytest.raises(UserError, match="got a run that is at work in process"):
        train_on_one_device(begun)


def test_a_run_of_another_machine_is_at_work_while_it_logs(begun: RunConfig) -> None:
    elsewhere = ProcessIdentity(host="there", space="another boot", pid=1, started=1)
    at_work(begun, elsewhere, ago=1000)
    with pytest.raises(UserError, match=r"got a run that was at work on there \d+ s ago, .* again in a few minutes"):
        # It has logged its first step just now.
        train_on_one_device(begun)
    with pytest.MonkeyPatch.context() as patch:
        now = time.time()
        patch.setattr("drl_dist.tracking.files.table.time.time", lambda: now - 1000)
        table = MetricsTable(begun.url, 0)
        table.log(1, {"loss": 1.0})
        table.write(is_sealed=True)
    assert train_on_one_device(begun) == 0


def test_records_name_this_process_while_it_works(tmp_path: Path) -> None:
    with status_recorded(str(tmp_path)):
        status = read_status(str(tmp_path))
        assert status is not None and status.process == this_process() and not status.was_killed
        assert status.process is not None and status.process.is_alive
        # A later process of the same id is another one.
        assert dataclasses.replace(status.process, started=1).is_alive is False
        assert dataclasses.replace(status.process, space="another boot").is_alive is None
    # Records of earlier versions name none.
    record = json.loads((tmp_path / STATUS).read_text())
    assert record.pop("process") is None
    (tmp_path / STATUS).write_text(json.dumps(record))
    assert read_status(str(tmp_path)) == dataclasses.replace(
        status, state="finished", since=record["since"], process=None
    )
