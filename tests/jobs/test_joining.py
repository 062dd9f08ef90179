"""Joining a cluster, or starting one: what cannot work is told in seconds, and what can work does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private import services

from drl_dist.common.errors import UserError
from drl_dist.common.proxies import LOOPBACK, proxy_variable, spare_loopback
from drl_dist.jobs.common.cluster import check_answers
from drl_dist.jobs.common.ray_folders import (
    LARGE_BYTES,
    SOCKET_BYTES,
    large_entries,
    session_folder,
    warn_of_large_folder,
)
from drl_dist.localhost import MlflowServer, RayHead, StartError
from tests.helpers.forked import real_process
from tests.support import subprocess_environment, titled, wait_for

JOIN = """
import os
import ray
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.cluster import cluster
def join():
    with cluster():
        print("joined", ray._private.worker.global_worker.node.get_session_dir_path())
        @ray.remote
        def folders():
            of_raylet = open(f"/proc/{os.environ['RAY_RAYLET_PID']}/environ").read().split("\\0")
            return [os.environ.get("TMPDIR")] + [line for line in of_raylet if line.startswith("TMPDIR=")]
        print(*ray.get(folders.remote()), os.environ.get("TMPDIR"))
    return 0
entry_point(join)
"""


def join(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A process that joins a cluster or starts one."""
    return subprocess.run(
        [sys.executable, "-c", JOIN],
        check=False,
        env=subprocess_environment(environment),
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.integration
def test_a_long_folder_of_temporary_files_and_a_proxy_do_not_matter(tmp_path: Path) -> None:
    long = tmp_path / ("a" * 60) / ("b" * 60)
    long.mkdir(parents=True)
    joined = join({"TMPDIR": str(long), "HTTP_PROXY": "http://127.0.0.1:9"})
    assert joined.returncode == 0, joined.stderr
    session = Path(joined.stdout.split()[1])
    assert session.is_relative_to("/tmp") and not session.is_relative_to(long)
    assert not session.parent.exists()
    # Ray's own processes listen in it; what workers write there may need the room that it has.
    assert joined.stdout.split()[2:] == [str(long), "TMPDIR=/tmp", str(long)]


def test_a_head_does_not_take_a_long_folder_of_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    head = RayHead(num_cpus=1)
    try:
        monkeypatch.setenv("TMPDIR", "/" + "a" * 100)
        assert head.server_environment()["TMPDIR"] == "/tmp"
        monkeypatch.setenv("TMPDIR", "/scratch")
        assert head.server_environment()["TMPDIR"] == "/scratch"
    finally:
        head.stop()


@pytest.fixture
def no_folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_the_folder_is_short_enough_for_sockets(variable: str, no_folders: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        no_folders.setenv(variable, short)
        assert session_folder() is None
        for length in range(20, 130, 5):
            base = Path(short) / ("a" * length)
            base.mkdir()
            no_folders.setenv(variable, str(base))
            socket = (
                f"{session_folder() or base / 'ray'}/session_2026-11-28_02-43-17_760636_2084000/sockets/plasma_store"
            )
            assert len(socket) <= SOCKET_BYTES
    made = session_folder_is_private(no_folders, tmp_path / ("c" * 120), variable)
    assert made.stat().st_mode & 0o777 == 0o700
    made.rmdir()


def session_folder_is_private(patch: pytest.MonkeyPatch, base: Path, variable: str) -> Path:
    base.mkdir()
    patch.setenv(variable, str(base))
    made = session_folder()
    assert made is not None
    return Path(made)


@pytest.mark.parametrize("place", ["/proc/nonesuch", "relative", "/proc/version", "/proc/version/below"])
def test_a_folder_that_is_none_is_told(place: str, no_folders: pytest.MonkeyPatch) -> None:
    no_folders.setenv("TMPDIR", place)
    with pytest.raises(UserError, match=rf"folder of temporary files {place} \(TMPDIR\): got"):
        session_folder()


@pytest.mark.parametrize("address", ["garbage", "127.0.0.1:port", "[::1", "http://127.0.0.1:8265", "ray://", ":6379"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(UserError, match="got no address of a cluster, expected HOST:PORT"):
        check_answers(address)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_variable_that_is_empty_counts_as_none(variable: str, no_folders: pytest.MonkeyPatch) -> None:
    """Ray would take it for the folder that it works in."""
    no_folders.setenv(variable, "")
    given = session_folder()
    assert given is not None and Path(given).is_relative_to("/tmp")


def test_auto_is_looked_up_and_tried_as_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {dead})
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _folder: None)  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(
        UserError, match=rf"got no answer .* at \S+:{dead[10:]}, expected a cluster at RAY_ADDRESS=auto"
    ):
        check_answers("auto")
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    with pytest.raises(UserError, match="got none that runs on this machine, expected a cluster at RAY_ADDRESS=auto"):
        check_answers("auto")


def test_a_head_that_finds_no_folder_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(prefix: str, dir: str) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkdtemp", refuse)
        with pytest.raises(StartError, match=r"no folder for its .* in /tmp \(.*No space left"):
            RayHead(num_cpus=1)
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"MLflow server could not be started: .*Not a directory"):
        MlflowServer(tmp_path / "file" / "below").start()


@pytest.mark.integration
def test_a_wrong_token_and_a_dead_raylet_are_told_at_once() -> None:
    with RayHead(num_cpus=1) as head:
        refused = join(head.environment() | {"RAY_AUTH_TOKEN": "0" * 64})
        assert refused.returncode == 2
        assert "Ray cluster: got a refused token" in refused.stderr.splitlines()[-1]
        assert "0" * 64 not in refused.stderr

        # What watches over the processes of the head would end the others too.
        (raylet,) = [pid for pid in titled(head, "") if "raylet/raylet" in command(pid)]
        os.kill(real_process(head.pid), signal.SIGSTOP)
        os.kill(raylet, signal.SIGKILL)
        wait_for(lambda: not command(raylet))
        refused = join(head.environment())
        assert refused.returncode == 2, refused.stderr
        assert "got a head without a living node: its raylet has died" in refused.stderr.splitlines()[-1]


def command(pid: int) -> str:
    """The program of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_large_working_folder_is_told_with_its_largest_entries(tmp_path: Path) -> None:
    for name, size in {"data/a.tar": LARGE_BYTES, "mlflow.db": 1 << 20, "jobs/x.py": 10}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    told = large_entries(tmp_path)
    assert told is not None
    assert told.startswith("--working-dir sent 21 MiB (data 20.0 MiB, mlflow.db 1.0 MiB, jobs 0.0 MiB)")
    (tmp_path / "data" / "a.tar").unlink()
    assert large_entries(tmp_path) is None


def test_only_what_was_sent_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, elsewhere = tmp_path / "working_dir_files" / "_ray_pkg_0123", tmp_path / "elsewhere"
    for folder in (sent / "jobs", elsewhere):
        folder.mkdir(parents=True)
        with (folder / "large").open("wb") as file:
            file.truncate(LARGE_BYTES + 1)

    def told(folder: Path, uri: str = "gcs://_ray_pkg_0123.zip") -> str:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": uri}}))
        monkeypatch.chdir(folder)
        warn_of_large_folder()
        return capsys.readouterr().err

    assert told(sent).startswith("--working-dir sent 20 MiB (jobs 20.0 MiB)")
    assert told(sent / "jobs") == told(sent)
    # `cd DATA && python …`: nobody sent that, and looking through it may take hours.
    assert told(elsewhere) == ""
    assert told(sent, "https://host/_ray_pkg_0123.zip") == ""


def test_this_machine_is_added_to_what_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    local = ",".join(LOOPBACK)
    for given, expected in (
        ({}, {}),
        ({"HTTP_PROXY": "p"}, {"HTTP_PROXY": "p", "NO_PROXY": local, "no_proxy": local}),
        (
            {"all_proxy": "p", "no_proxy": "a, b", "NO_PROXY": "c"},
            {"all_proxy": "p", "NO_PROXY": f"a,b,c,{local}", "no_proxy": f"a,b,c,{local}"},
        ),
        ({"HTTPS_PROXY": "p", "NO_PROXY": "*"}, {"HTTPS_PROXY": "p", "NO_PROXY": "*"}),
    ):
        environment = dict(given)
        spare_loopback(environment)
        assert environment == expected
        spare_loopback(environment)
        assert environment == expected
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://secret")
    assert proxy_variable("https://host/x") == "HTTPS_PROXY"
    assert proxy_variable("http://host") is None
    assert proxy_variable("https://127.0.0.1:1") is None
