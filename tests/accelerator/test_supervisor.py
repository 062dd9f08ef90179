"""The process that works may fail, hang or die: what it found stays, and the other parts go on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.accelerator import supervisor
from benchmarks.accelerator.parts import PARTS, UNUSABLE, Clock
from benchmarks.accelerator.record import RESULTS, append, read
from tests.helpers.forked import real_python
from tests.support import ROOT

WORKER = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from benchmarks.accelerator.record import append
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = Path(given["--out"])
for name in given["--parts"].split(","):
    if name == "machine" and {early!r}:
        sys.exit(3)
    append(out, name, "begin", until=time.monotonic() + {allowed!r})
    append(out, name, "row", what=name)
    if name == "equality":
        {deed}
    append(out, name, "end", status="done", message="", seconds=0.1)
"""
NAMES = ["machine", "equality", "throughput"]


def supervised(
    folder: Path, monkeypatch: pytest.MonkeyPatch, deed: str, *, allowed: float = 100.0, early: bool = False
) -> bool:
    script = folder / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT), deed=deed, allowed=allowed, early=early))
    monkeypatch.setattr(supervisor, "WORKER", [real_python(), str(script)])
    clock = Clock(time.monotonic() + 200)
    return supervisor.supervise(folder, NAMES, "cpu", clock, clock)


def statuses(folder: Path) -> dict[str, str]:
    return {name: part.status for name, part in read(folder).items()}


@pytest.mark.integration
def test_a_part_whose_process_dies_is_recorded_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the middle of a line, which the supervisor must not write on.
    deed = f"""with (out / {RESULTS!r}).open("a") as file: file.write('{{"part": "equal')
        os.kill(os.getpid(), signal.SIGKILL)"""
    assert supervised(tmp_path, monkeypatch, deed)
    assert statuses(tmp_path) == {"machine": "done", "equality": "failed", "throughput": "done"}
    part = read(tmp_path)["equality"]
    assert part.message == "its process was ended by SIGKILL" and part.rows == [{"what": "equality"}]
    report = (tmp_path / "report.md").read_text()
    assert "| Rates | done |" in report and "failed: its process was ended by SIGKILL" in report


@pytest.mark.integration
def test_a_part_that_hangs_is_ended_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.0)
    assert supervised(tmp_path, monkeypatch, "time.sleep(1000)", allowed=2.0)
    assert statuses(tmp_path) == {"machine": "done", "equality": "out of time", "throughput": "done"}


@pytest.mark.integration
def test_a_process_that_does_not_begin_costs_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised(tmp_path, monkeypatch, "pass", early=True)
    assert statuses(tmp_path) == {"machine": "failed", "equality": "done", "throughput": "done"}
    assert read(tmp_path)["machine"].message == "its process ended with status 3; its last words are above"


@pytest.mark.integration
def test_a_failed_part_ends_its_process_and_the_next_begins_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deed = "append(out, name, 'end', status='failed', message='it broke', seconds=0.1); sys.exit(1)"
    assert supervised(tmp_path, monkeypatch, deed)
    assert statuses(tmp_path) == {"machine": "done", "equality": "failed", "throughput": "done"}
    assert read(tmp_path)["equality"].message == "it broke"


@pytest.mark.integration
def test_a_device_that_is_lost_costs_a_process_and_the_part_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deed = f"""from benchmarks.accelerator.record import read
        if len(read(out)[name].rows) < 3: sys.exit({UNUSABLE})"""
    assert not supervised(tmp_path, monkeypatch, deed)
    assert statuses(tmp_path) == dict.fromkeys(NAMES, "done")
    assert len(read(tmp_path)["equality"].rows) == 3 and len(read(tmp_path)["machine"].rows) == 1


@pytest.mark.integration
def test_a_device_that_is_lost_again_and_again_costs_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised(tmp_path, monkeypatch, f"sys.exit({UNUSABLE})")
    assert statuses(tmp_path) == {"machine": "done", "equality": "failed", "throughput": "done"}
    part = read(tmp_path)["equality"]
    assert len(part.rows) == 4 and part.message.startswith("4 processes could not use the device any more")


def test_parts_without_time_say_so(tmp_path: Path) -> None:
    over = Clock(time.monotonic())
    assert not supervisor.supervise(tmp_path, NAMES, "cpu", over, over)
    assert statuses(tmp_path) == dict.fromkeys(NAMES, "skipped")


def test_rows_are_kept_as_they_come_and_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    append(tmp_path, "equality", "begin", until=1.0)
    append(tmp_path, "equality", "row", error=float("nan"), pace={"a": float("inf")}, sizes=(1, 2.5))
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"part": "equality", "ev')
    append(tmp_path, "equality", "row", error=0.5)
    part = read(tmp_path)["equality"]
    assert part.status == "running"
    assert part.rows == [{"error": "nan", "pace": {"a": "inf"}, "sizes": [1, 2.5]}, {"error": 0.5}]


def test_time_that_a_part_leaves_goes_to_the_others() -> None:
    names = list(PARTS)
    whole = Clock(time.monotonic() + 500)
    first = whole.share("machine", names).left()
    assert first == pytest.approx(500 * PARTS["machine"].weight / sum(part.weight for part in PARTS.values()), rel=0.01)
    assert whole.share("training", ["training"]).left() == pytest.approx(500, rel=0.01)
    assert whole.allows(400) and not whole.allows(600) and Clock(time.monotonic() - 1).left() == 0.0
