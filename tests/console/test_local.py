"""``up``, ``down`` and ``status`` of local servers: real processes, of a small server in place of the two."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from drl_dist.common.errors import UserError
from drl_dist.console import local
from drl_dist.console.command import run
from drl_dist.console.servers import RECORD, locked, read_servers
from drl_dist.localhost import LocalServer, StartError, free_ports, processes
from drl_dist.localhost.server import HOST
from tests.support import wait_for

pytestmark = pytest.mark.integration
PROGRAM = (
    "import subprocess, sys\n"
    "from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), BaseHTTPRequestHandler).serve_forever()"
)


class Small(LocalServer):
    """A server with a child process, as both have."""

    fails = False

    def command(self) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no')" if self.fails else PROGRAM, str(self.port)]

    def server_environment(self) -> dict[str, str]:
        return dict(os.environ)

    def is_ready(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex((HOST, self.port)) == 0

    def __init__(self, name: str, folder: Path, port: int | None) -> None:
        super().__init__(name, folder / "log", 60)
        self.folder, self.port = folder, port or free_ports(1)[0]


class SmallMlflow(Small):
    def __init__(self, folder: str | Path, *, port: int | None = None) -> None:
        super().__init__("MLflow server", Path(folder), port)

    @property
    def uri(self) -> str:
        return f"http://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_URI": self.uri}


class SmallHead(Small):
    made: list[SmallHead]

    def __init__(self, num_cpus: int, *, environment: Mapping[str, str], dashboard_port: int | None = None) -> None:
        super().__init__("Ray head", self.scratch, dashboard_port)
        self.num_cpus, self.given = num_cpus, dict(environment)
        self.made.append(self)

    scratch: Path

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        return {"RAY_AUTH_TOKEN": "it's secret", "RAY_API_SERVER_ADDRESS": self.address}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of `up`, whose servers are ended whatever happens."""
    monkeypatch.setattr(local, "MlflowServer", SmallMlflow)
    monkeypatch.setattr(local, "RayHead", SmallHead)
    # Signals are those of the test's own process.
    monkeypatch.setattr(local, "end_on_signals", lambda: None)
    SmallHead.made, SmallHead.scratch, SmallHead.fails = [], tmp_path / "scratch", False
    place = tmp_path / "local"
    yield place
    if (place / RECORD).exists():
        run(["down", "--folder", str(place)])


def exports(text: str) -> dict[str, str]:
    words = [shlex.split(line) for line in text.splitlines()]
    assert all(word[0] == "export" and len(word) == 2 for word in words)
    return dict(word[1].split("=", 1) for word in words)


def members(folder: Path) -> list[processes.Process]:
    return [each for server in read_servers(folder).values() for each in processes.tree(server.pid)]


def test_up_starts_both_says_so_the_second_time_and_down_stops_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up = ["up", "--folder", str(folder), "--num-cpus", "3"]
    assert run(up) == 0
    first = capsys.readouterr()
    assert "Ray head runs at http://127.0.0.1:" in first.err and "have the head's environment" in first.err
    variables = exports(first.out)
    assert variables["RAY_AUTH_TOKEN"] == "it's secret" and "secret" not in first.err
    head = SmallHead.made[0]
    assert head.num_cpus == 3 and head.given["MLFLOW_TRACKING_URI"] == variables["MLFLOW_TRACKING_URI"]
    assert head.given["RAY_JOB_STOP_WAIT_TIME_S"] == "300"
    # The token is nobody else's.
    assert (folder / RECORD).stat().st_mode & 0o077 == 0
    assert run(up) == 0
    second = capsys.readouterr()
    assert exports(second.out) == variables and len(SmallHead.made) == 1
    assert "MLflow server runs already at" in second.err and "Ray head runs already at" in second.err
    assert run(["status", "--folder", str(folder)]) == 0
    assert capsys.readouterr().out.count(": running for ") == 2
    running = members(folder)
    assert len(running) >= 4
    assert run(["down", "--folder", str(folder)]) == 0
    assert processes.running(running) == []
    assert not (folder / RECORD).exists() and not SmallHead.scratch.exists()
    assert "Ray head (process " in capsys.readouterr().out
    assert run(["down", "--folder", str(folder)]) == 0
    assert "nothing to stop" in capsys.readouterr().out
    assert run(["status", "--folder", str(folder)]) == 1


def test_what_has_died_is_said_and_started_again_at_the_address_that_jobs_know(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "--folder", str(folder)]) == 0
    before = exports(capsys.readouterr().out)
    mlflow = read_servers(folder)["MLflow server"]
    left = [each for each in processes.tree(mlflow.pid) if each.pid != mlflow.pid]
    os.kill(mlflow.pid, signal.SIGKILL)
    wait_for(lambda: not mlflow.is_alive, 30)
    assert run(["status", "--folder", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "MLflow server http://127.0.0.1:" in said and "has ended" in said and "Ray head" in said
    assert run(["up", "--folder", str(folder)]) == 0
    again = capsys.readouterr()
    assert exports(again.out) == before and "has ended since it was started" in again.err
    assert len(SmallHead.made) == 1
    # What the dead one had started is ended too.
    assert processes.running(left) == []


def test_a_process_that_has_taken_over_an_id_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--folder", str(folder)]) == 0
    record = json.loads((folder / RECORD).read_text())
    whole = json.dumps(record)
    # This process stands for one that got the id of the head, which ended.
    for entry in record["servers"]:
        entry["pid"] = os.getpid()
    (folder / RECORD).write_text(json.dumps(record))
    capsys.readouterr()
    assert run(["status", "--folder", str(folder)]) == 1
    assert capsys.readouterr().out.count("has ended") == 2
    assert run(["down", "--folder", str(folder)]) == 0
    assert capsys.readouterr().out.count("had ended before") == 2
    (folder / RECORD).write_text(whole)


def test_a_server_that_does_not_start_leaves_nothing_behind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SmallHead.fails = True
    with pytest.raises(UserError, match=r"python -m drl_dist up: got Ray head ended with status 1"):
        run(["up", "--folder", str(folder)])
    assert capsys.readouterr().out == ""
    assert not (folder / RECORD).exists()
    port = int((folder / "mlflow_port").read_text())
    with socket.socket() as connection:
        assert connection.connect_ex((HOST, port)) != 0
    assert not issubclass(StartError, UserError)


def test_ports_are_given_kept_and_refused_where_they_are_taken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_ports(1)[0]
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(UserError, match=r"option --dashboard-port: got port \d+, which is taken"):
            run(["up", "--folder", str(folder), "--dashboard-port", str(taken.getsockname()[1])])
    assert run(["up", "--folder", str(folder), "--mlflow-port", str(port)]) == 0
    assert exports(capsys.readouterr().out)["MLFLOW_TRACKING_URI"].endswith(f":{port}")
    with pytest.raises(UserError, match=rf"option --mlflow-port: got {port + 1}, expected {port}, where the MLflow"):
        run(["up", "--folder", str(folder), "--mlflow-port", str(port + 1)])
    assert run(["down", "--folder", str(folder)]) == 0
    capsys.readouterr()
    assert run(["up", "--folder", str(folder)]) == 0
    assert exports(capsys.readouterr().out)["MLFLOW_TRACKING_URI"].endswith(f":{port}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-cpus", "0"], "option --num-cpus: got 0, expected at least 1"),
        (["--mlflow-port", "80"], "option --mlflow-port: got 80, expected 1024 to 65535"),
        (["--mlflow-port", "8080", "--dashboard-port", "8080"], "expected another port than --mlflow-port"),
        (["--num-cpus", "two"], "option --num-cpus: got two, expected"),
        (["--num-cpu", "2"], "option: got --num-cpu, .* did you mean --num-cpus"),
        (["--folder", "gs://bucket/local"], "option --folder: got gs://bucket/local, expected a path on this machine"),
        (["--folder", "/proc/nowhere"], "folder /proc/nowhere: got No such file or directory"),
    ],
)
def test_options_that_cannot_be_used(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(["up", *words])


def test_a_damaged_record_and_another_command_at_work(folder: Path) -> None:
    folder.mkdir()
    (folder / RECORD).write_text('{"servers": [{"name": "x"}]}')
    for command in ("up", "down", "status"):
        with pytest.raises(UserError, match=r"record .*servers\.json: got TypeError"):
            run([command, "--folder", str(folder)])
    (folder / RECORD).unlink()
    with locked(folder), pytest.raises(UserError, match="another `python -m drl_dist up` or"):
        run(["up", "--folder", str(folder)])
