"""The log on local disk, without a server."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drl_dist.common.errors import UserError
from drl_dist.data.shards import encode_png
from drl_dist.tracking import spool as spool_module
from drl_dist.tracking.sender import METRICS_PER_REQUEST, _groups
from drl_dist.tracking.spool import ImageRecord, MetricsRecord, Spool, StatusRecord
from drl_dist.tracking.sync import sync
from drl_dist.tracking.tracker import Tracker
from tests.support import ROOT, subprocess_environment
from tests.tracking.front import Front


def metrics(step: int, count: int = 1) -> MetricsRecord:
    return MetricsRecord(step, 1000 + step, {f"m{index}": float(step) for index in range(count)})


def test_what_was_not_sent_is_there_after_a_restart_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(5):
        spool.append(metrics(step))
    spool.commit(spool.read()[1][1])
    spool.close()
    again = Spool(tmp_path)
    assert [record for record, _ in again.read()] == [metrics(2), metrics(3), metrics(4)]
    again.commit(again.read()[-1][1])
    assert again.unsent_bytes == 0
    again.close()


def test_a_line_that_was_cut_short_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(metrics(0))
    spool.close()
    with (tmp_path / "records.jsonl").open("ab") as log:
        log.write(b'{"kind":"metrics","step":1,"ti')
    again = Spool(tmp_path)
    again.append(metrics(2))
    assert [record for record, _ in again.read()] == [metrics(0), metrics(2)]
    again.close()


@pytest.mark.parametrize("text", ["", '{"offset"', "[]", "{}", '{"offset": null}'])
def test_what_was_sent_is_sent_again_if_the_note_of_it_is_damaged(tmp_path: Path, text: str) -> None:
    spool = Spool(tmp_path)
    for step in range(2):
        spool.append(metrics(step))
    spool.commit(spool.read()[0][1])
    spool.close()
    (tmp_path / "sent.json").write_text(text)
    again = Spool(tmp_path)
    assert [record for record, _ in again.read()] == [metrics(0), metrics(1)]
    again.close()


def test_a_log_that_was_all_sent_starts_anew_and_one_that_was_not_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "RESTART_BYTES", 100)
    spool = Spool(tmp_path)
    for step in range(10):
        spool.append(metrics(step))
    records = spool.read()
    spool.commit(records[4][1])
    assert (tmp_path / "records.jsonl").stat().st_size == records[-1][1]
    spool.commit(records[-1][1])
    assert (tmp_path / "records.jsonl").stat().st_size == 0
    spool.append(metrics(10))
    spool.close()
    again = Spool(tmp_path)
    assert [record for record, _ in again.read()] == [metrics(10)]
    again.close()


def test_a_process_killed_in_the_middle_loses_nothing_it_logged(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from drl_dist.tracking.spool import *\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "for step in range(100): spool.append(MetricsRecord(step, 0, {'loss': 1.0}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=subprocess_environment(), cwd=ROOT, check=False
    )
    assert ended.returncode == -9
    spool = Spool(tmp_path)
    assert len(spool.read()) == 100
    spool.close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(UserError, match="has it open"):
        Spool(tmp_path, lock_seconds=0.2)
    spool.close()


def test_numbers_that_are_not_finite_survive_the_log(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(MetricsRecord(1, 1, {"a": float("inf"), "b": float("nan")}))
    record = spool.read()[0][0]
    assert isinstance(record, MetricsRecord) and record.values["a"] == float("inf")
    assert record.values["b"] != record.values["b"]
    spool.close()


def test_groups_keep_order_and_the_request_limit() -> None:
    records = [
        metrics(0, 600),
        metrics(1, 600),
        StatusRecord("RUNNING"),
        metrics(2),
        metrics(3),
        ImageRecord("samples", 3, 0, "x.png"),
        metrics(4, 2 * METRICS_PER_REQUEST),
    ]
    groups = list(_groups((record, offset) for offset, record in enumerate(records, 1)))
    assert [record for group, _ in groups for record in group] == records
    assert [(len(group), offset) for group, offset in groups] == [(1, 1), (1, 2), (1, 3), (2, 5), (1, 6), (1, 7)]


def test_files_in_the_spool_outlive_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("a")
    spool = Spool(tmp_path / "spool")
    linked = spool.payload / spool.keep_files(source, ["a.txt"]) / "a.txt"
    assert linked.samefile(source / "a.txt")
    with pytest.raises(FileNotFoundError):
        spool.keep_files(source, ["absent"])

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", other_disk)
    copied = spool.payload / spool.keep_files(source, ["a.txt"]) / "a.txt"
    (source / "a.txt").unlink()
    assert (linked.read_text(), copied.read_text()) == ("a", "a")
    spool.close()


@pytest.mark.slow
def test_logging_does_not_wait_for_a_server_that_does_not_answer(tmp_path: Path) -> None:
    # 192.0.2.0/24 is reserved for documentation: packets to it vanish.
    tracker = Tracker("http://192.0.2.255:5000", "0" * 32, tmp_path)
    tracker.log_metrics(0, {"loss": 0.0})
    time.sleep(2.5)  # the sending thread is now waiting for an answer
    began = time.monotonic()
    for step in range(1, 201):
        tracker.log_metrics(step, {f"displacement/level_{t}": 1.0 for t in range(30)})
    tracker.log_image("samples", 200, encode_png(np.zeros((1, 8, 8), np.uint8)))
    assert time.monotonic() - began < 1
    assert not tracker.flush(0.1)
    began = time.monotonic()
    assert not tracker.close("FINISHED", deadline_seconds=1)
    assert time.monotonic() - began < 10
    lines = (tracker.spool / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["status"] + 201 * ["metrics"] + ["image", "status"]


@pytest.mark.slow
def test_the_command_that_sends_the_rest_can_be_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    tracker = Tracker(uri, "run", tmp_path / "it's a folder")
    assert not tracker.close("FINISHED", 0.1)
    (command,) = re.findall(r"run `(.*)` when it answers", caplog.text)
    words = ["python", "-m", "drl_dist.tracking.sync", "--spool", str(tracker.spool)]
    assert shlex.split(command) == words


def test_a_server_that_takes_some_of_it_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"uri": "http://127.0.0.1:9", "run_id": "run"}))
    spool = Spool(tmp_path)
    spool.append(metrics(1))
    spool.close()
    answers = {
        "/api/2.0/mlflow/experiments/search": (200, "{}"),
        "/version": (200, "3.1.0"),
        "/api/2.0/mlflow/runs/log-batch": (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "deleted"}'),
    }
    with Front("", answers=answers) as front, pytest.raises(UserError) as caught:
        sync(tmp_path, front.uri)
    assert "got a refusal for good (records: 1)" in str(caught.value)
    assert json.loads((tmp_path / "refused.jsonl").read_text())["step"] == 1


def test_names_that_the_server_would_refuse_are_refused_at_once(tmp_path: Path) -> None:
    tracker = Tracker("http://127.0.0.1:9", "0" * 32, tmp_path)
    with pytest.raises(ValueError, match="no metric or image name"):
        tracker.log_metrics(0, {"a:b": 1.0})
    with pytest.raises(ValueError, match="image samples is no PNG file: it begins with b'GIF89a'"):
        tracker.log_image("samples", 0, b"GIF89a")
    tracker.close(deadline_seconds=0)
