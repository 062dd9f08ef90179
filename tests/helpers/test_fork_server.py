"""A forked process is, to whoever starts it, what a fresh interpreter would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from drl_dist.localhost import processes
from tests.helpers.forked import FOLDER, ForkServer, count_forked_processes_below_their_clients, kill, real_process
from tests.support import subprocess_environment, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """The `python` of the session's fork server, or of one of our own where the session has none."""
    if FOLDER in os.environ:
        yield sys.executable
        return
    with pytest.MonkeyPatch.context() as patch:
        server = ForkServer(subprocess_environment())
        server.start()
        patch.setenv(FOLDER, str(server.folder))
        patch.setattr(processes, "_processes", processes._processes)  # pyright: ignore[reportPrivateUsage]
        count_forked_processes_below_their_clients()
        yield str(server.python)
        server.stop()


def run(
    python: str, code: str, *arguments: str, environment: Mapping[str, str] | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", code, *arguments],
        env=dict(environment or subprocess_environment()),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,  # pyright: ignore[reportArgumentType, reportCallIssue]
    )


def test_libraries_are_there_and_the_project_is_not(python: str) -> None:
    done = run(python, "import sys; print(sorted({'torch', 'ray', 'mlflow', 'drl_dist'} & set(sys.modules)))")
    assert done.stdout == "['mlflow', 'ray', 'torch']\n", done.stderr


def test_arguments_input_folder_and_open_files_arrive(python: str, tmp_path: Path) -> None:
    reads, writes = os.pipe()
    code = (
        "import os, sys; os.write(int(sys.argv[1]), b'through the pipe');"
        "print(sys.argv[2:], sys.stdin.read(), os.getcwd(), os.umask(0))"
    )
    before = os.umask(0o027)
    try:
        done = run(python, code, str(writes), "two words", input="typed", cwd=tmp_path, pass_fds=(writes,))
    finally:
        os.umask(before)
        os.close(writes)
    assert done.stdout == f"['two words'] typed {tmp_path} {0o027}\n", done.stderr
    assert os.read(reads, 100) == b"through the pipe"
    assert os.read(reads, 1) == b"", "the forked process, or the server, still holds the pipe"
    os.close(reads)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('one sentence')", 1, "one sentence\n"),
        ("raise KeyError('gone')", 1, "KeyError: 'gone'\n"),
        ("import os; os._exit(3)", 3, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit; atexit.register(print, 'the end'); print('first')", 0, ""),
    ],
)
def test_it_ends_as_a_fresh_one_does(python: str, code: str, status: int, said: str) -> None:
    done = run(python, code)
    assert done.returncode == status
    assert done.stderr.endswith(said) and bool(said) == bool(done.stderr)
    if "atexit" in code:
        assert done.stdout == "first\nthe end\n"


def started(python: str, code: str, folder: Path, *before: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has written its process id, and that id."""
    place = folder / "pid"
    text = f"import os, pathlib, signal, time; pathlib.Path({str(place)!r}).write_text(str(os.getpid())); {code}"
    process = subprocess.Popen(
        [*before, python, "-c", text],
        env=subprocess_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: place.exists() and place.read_text(), 60)
    return process, int(place.read_text())


def test_an_interrupt_reaches_it_even_where_the_server_ignores_them(python: str, tmp_path: Path) -> None:
    process, _ = started(python, "time.sleep(60)", tmp_path, "env", "--default-signal=INT")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert said.endswith("KeyboardInterrupt\n")


def test_an_ignored_signal_stays_ignored(python: str, tmp_path: Path) -> None:
    code = "print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    process, _ = started(python, code, tmp_path, "env", "--ignore-signal=INT")
    assert process.communicate(timeout=30)[0] == "True\n"


def test_nothing_is_left_of_what_was_killed_before_the_next_start(python: str, tmp_path: Path) -> None:
    code = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(100)"
    client = subprocess.Popen([python, "-c", code, tmp_path / "began"], env=subprocess_environment())
    wait_for((tmp_path / "began").exists)
    child = real_process(client.pid)
    assert child != client.pid
    kill(client)
    assert client.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_killed_client_takes_it_along_and_what_it_started_is_found(python: str, tmp_path: Path) -> None:
    code = "os.fork(); time.sleep(60)"
    client, child = started(python, code, tmp_path)
    assert child != client.pid and real_process(client.pid) == child
    wait_for(lambda: len(processes.tree(client.pid)) == 3, 30)
    client.kill()
    client.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), 30)
    # The grandchild outlives it, as it would a fresh one, and is found by the session.
    rest = processes.tree(client.pid)
    assert len(rest) == 1
    processes.end(rest, signal.SIGKILL)
    assert processes.wait_until_gone(rest, 30)


def test_what_libraries_read_when_they_are_imported_must_be_the_same(python: str) -> None:
    code = "import os, sys; print('torch' in sys.modules, os.environ['OMP_NUM_THREADS'])"
    same, other = (subprocess_environment({"OMP_NUM_THREADS": number}) for number in ("1", "7"))
    assert run(python, code, environment=other).stdout == "False 7\n"
    if os.environ.get("OMP_NUM_THREADS") == "1":
        assert run(python, code, environment=same).stdout == "True 1\n"


def test_no_two_draw_the_same_random_numbers(python: str) -> None:
    code = (
        "import json, random, tempfile, uuid, numpy, ray._raylet as ray;"
        "print(json.dumps([random.random(), numpy.random.random(), str(uuid.uuid4()), ray.NodeID.from_random().hex(),"
        " ray.ActorClassID.from_random().hex(), next(tempfile._get_candidate_names())]))"
    )
    one, other = (json.loads(run(python, code).stdout) for _ in range(2))
    assert len(one) == 6 and not set(one) & set(other)
