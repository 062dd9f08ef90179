"""Spare processes: an actor like one that has died is given a process that was there before, with its imports made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
import ray

from drl_dist.jobs.train import start
from drl_dist.jobs.train.faults.spares import Spare
from drl_dist.localhost import RayHead
from drl_dist.localhost.ray_head import IDLE_FIRST
from drl_dist.training.loop import StepReport
from tests.helpers.forked import real_python
from tests.support import ROOT, subprocess_environment, titled, wait_for

_SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

import ray
from ray.exceptions import RayActorError

from drl_dist.jobs.common.cluster import cluster
from drl_dist.jobs.train.faults.spares import ask_for_spare
from drl_dist.jobs.train.start import imports_at_start


class Worker:
    def look(self):
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return {"pid": os.getpid(), "began": began, "has_imported": "drl_dist.jobs.train.worker" in sys.modules}

    def ask(self):
        ask_for_spare()


def usage(pid):
    # Whether a process sleeps, and its processor time so far; None if it is gone.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0] == "S", int(fields[11]) + int(fields[12])


def wait_for_spare(raylet, known):
    # Until the raylet has a further child that has done what it does at its start.
    deadline, before = time.monotonic() + 200, {}
    while time.monotonic() < deadline:
        children = set(Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()) - known
        now = {pid: usage(pid) for pid in children}
        for pid, seen in now.items():
            is_idle = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::IDLE") if seen else False
            if is_idle and seen[0] and before.get(pid) == seen and seen[1] > 20:
                return
        before = now
        time.sleep(1.5)
    raise TimeoutError


with cluster():
    variables = imports_at_start()
    actor = ray.remote(num_cpus=1, runtime_env={"env_vars": variables})(Worker)
    first = actor.remote()
    looks = [ray.get(first.look.remote())]
    raylet = Path(f"/proc/{looks[0]['pid']}/stat").read_text().rpartition(")")[2].split()[1]
    time.sleep(1)
    known = set(Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split())
    ray.get(first.ask.remote())
    wait_for_spare(raylet, known)
    ticks = float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")
    os.kill(looks[0]["pid"], signal.SIGKILL)
    try:
        ray.get(first.look.remote())
    except RayActorError:
        looks.append(ray.get(actor.remote().look.remote()))
    print(json.dumps({"looks": looks, "killed": ticks, "variables": list(variables)}))
"""


@pytest.mark.integration
def test_an_actor_after_one_that_was_killed_has_a_process_that_was_there_before(
    ray_head: RayHead,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=ROOT,
        env=subprocess_environment(ray_head.environment()),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    killed, after = found["looks"]
    assert len(found["variables"]) == 1
    assert killed["has_imported"] and after["has_imported"]
    assert after["pid"] != killed["pid"] and killed["began"] < after["began"] < found["killed"]
    # Nothing is left of the job, the spare processes that nobody needed included.
    wait_for(lambda: not {killed["pid"], after["pid"]} & set(titled(ray_head, "ray::")))


def test_nodes_end_spare_processes_before_workers_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    ((name, much),) = IDLE_FIRST.items()
    # A name that Ray does not know would do nothing.
    raylet = Path(ray.__file__).parent / "core/src/ray/raylet/raylet"
    assert name.encode() in raylet.read_bytes()
    assert f"{name}={much} " in (ROOT / "cluster/Dockerfile").read_text()
    monkeypatch.delenv(name, raising=False)
    head = RayHead()
    try:
        assert head.server_environment()[name] == much
        monkeypatch.setenv(name, "7")
        assert head.server_environment()[name] == "7"
    finally:
        head.stop()


@pytest.mark.parametrize(("given", "found"), [({}, [*IDLE_FIRST.values()]), ({"RAY_ADDRESS": "127.0.0.1:1"}, [None])])
def test_so_does_the_cluster_of_a_job_that_joins_none(given: dict[str, str], found: list[str | None]) -> None:
    look = "import json, os, sys, drl_dist.jobs; print(json.dumps([os.environ.get(name) for name in sys.argv[1:]]))"
    environment = subprocess_environment(given)
    command = [real_python(), "-c", look, *IDLE_FIRST]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == found


_IMPORTS = """
import json
import torch

asked = []
for name in ("is_available", "device_count", "_lazy_init"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name) or 0)

from drl_dist.jobs.train.start import import_worker

import_worker()
print(json.dumps(asked))
"""


@pytest.mark.integration
def test_imports_do_not_look_for_gpus_before_ray_has_assigned_one() -> None:
    # CUDA reads once which GPUs a process may see.
    command = [real_python(), "-c", _IMPORTS]
    done = subprocess.run(command, cwd=ROOT, env=subprocess_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_a_failing_import_does_not_end_the_process(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fail() -> None:
        asked.append(1)
        raise error("libtorch.so")

    monkeypatch.setattr(start, "import_worker", fail)
    start._importing()()
    assert asked == [1]


def reported(step: int, num_steps: int = 9) -> StepReport:
    return cast(StepReport, SimpleNamespace(step=step, num_steps=num_steps))


def test_a_worker_asks_once_and_after_its_first_step() -> None:
    asked: list[int] = []
    spare = Spare(lambda: asked.append(1))
    assert asked == []
    for step in (4, 5, 6):
        spare.on_step(reported(step), cast(Any, None))
        wait_for(lambda: asked)
    assert asked == [1]


def test_the_last_step_needs_no_spare() -> None:
    asked: list[int] = []
    spare = Spare(lambda: asked.append(1))
    spare.on_step(reported(9), cast(Any, None))
    assert not spare._is_asked and asked == []


@pytest.mark.parametrize("error", [grpc.RpcError("no\n\tsuch call"), AttributeError("no such call")])
def test_training_continues_where_ray_starts_none(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise error

    Spare(refuse).on_step(reported(1), cast(Any, None))
    shown: list[str] = []
    wait_for(lambda: shown.append(capsys.readouterr().out) or any(shown))
    why = f"{type(error).__name__}: no such call"
    assert "".join(shown) == f"Ray starts no spare process ({why}); a restart takes a few seconds longer\n"
