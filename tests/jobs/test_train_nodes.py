"""Machines that go away and come: a run with MIN:MAX workers continues with those there are, and loses nothing.

Nor does it tell anybody the credentials that its environment holds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.checkpoints.storage import checkpoint_name, complete_checkpoints, newest_checkpoint
from drl_dist.common.program import EXIT_STOPPED
from drl_dist.data.audit import audit, read_audit_log
from drl_dist.data.index import open_index
from drl_dist.localhost import MlflowServer, RayHead, processes
from tests.jobs.nodes import RayNode, nodes
from tests.jobs.training_jobs import words
from tests.support import ROOT, subprocess_environment, wait_for

EVERY = 40
NOTICE_SECONDS = 8

SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "someone",
    "MLFLOW_TRACKING_PASSWORD": "planted-secret-of-mlflow",
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-of-storage",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "planted-secret-of-google",
}

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(900)]


def kill_raylet(node: RayNode) -> None:
    """As if the machine had lost its power: Ray's own process dies first, and takes its workers along."""
    found = [
        process
        for process in processes.tree(node.pid)
        if Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet")
    ]
    assert len(found) == 1
    processes.end(found, signal.SIGKILL)
    assert processes.wait_until_gone(found, 10)


def files_that_hold(secret: str, *folders: Path) -> list[Path]:
    listed = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert listed
    found: list[Path] = []
    for path in listed:
        # Servers that run rename their files.
        with suppress(FileNotFoundError):
            if secret.encode() in path.read_bytes():
                found.append(path)
    return found


def test_a_run_outlives_its_machines(mlflow_server: MlflowServer, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "nodes"
    command = [
        sys.executable,
        str(ROOT / "jobs" / "train_digits.py"),
        *words(digits, tmp_path / "runs", "nodes"),
        "--num-workers=1:2",
        "--train.num-steps=1000000",
        f"--checkpoint.every-steps={EVERY}",
        "--tracking.sample-every-steps=1000000",
        f"--loader.ledger-dir={tmp_path / 'ledger'}",
    ]
    with RayHead(num_cpus=1, environment=SECRETS | {"OMP_NUM_THREADS": "1"}) as head:
        environment = subprocess_environment(head.environment(), mlflow_server.environment(), SECRETS)
        # A Ray that lives on 127.0.0.1 does not look for such notices by itself.
        environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1"
        with (
            RayNode(head, tmp_path / "first.log") as first,
            subprocess.Popen(
                command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ) as job,
        ):
            lines: list[str] = []
            reader = threading.Thread(target=lambda: lines.extend(iter(job.stdout.readline, "")))  # type: ignore[union-attr]
            reader.start()

            def until(holds: Callable[[], object]) -> None:
                wait_for(lambda: holds() or job.poll() is not None)
                assert job.poll() is None, "".join(lines)

            def newest() -> int:
                found = newest_checkpoint(str(folder))
                return found.step if found else 0

            def is_trained_by(world_size: int, after: int) -> Callable[[], bool]:
                def holds() -> bool:
                    if newest() <= after:
                        return False
                    state = read_checkpoint(folder / checkpoint_name(newest()), ()).state
                    return state.world_size == world_size

                return holds

            try:
                until(is_trained_by(2, after=0))
                kill_raylet(first)
                until(is_trained_by(1, after=newest()))
                with RayNode(head, tmp_path / "second.log") as second:
                    until(is_trained_by(2, after=newest()))
                    gone = second.node_id
                    drain(environment, gone)
                    until(lambda: any("a machine is about to be taken away" in line for line in lines))
                    until(lambda: nodes(head)[gone] == "DEAD")
                until(is_trained_by(1, after=newest()))
            finally:
                job.send_signal(signal.SIGTERM)
                status = job.wait(120)
                reader.join()
        # Ray's own logs as well.
        told = {
            secret: files_that_hold(secret, tmp_path, mlflow_server.folder, head.folder)
            for secret in (*SECRETS.values(), environment["RAY_AUTH_TOKEN"])
            if secret != "someone"
        }
    output = "".join(lines)
    assert status == EXIT_STOPPED, output
    assert "starting, 1 to 2 workers" in output
    assert "1 more worker can join the 1 there are; all restart from the checkpoint that is just complete" in output
    steps = [stored.step for stored in complete_checkpoints(str(folder))]
    assert [step for step in steps if step % EVERY], "none was written for the notice"
    index = open_index(str(digits))
    found = audit(
        read_audit_log(tmp_path / "ledger" / "nodes"),
        num_steps=steps[0],
        batch_size=8,
        num_samples=sum(shard.num_samples for shard in index.shards),
    )
    assert (found.num_lost, found.num_twice, found.num_changed) == (0, 0, 0)
    assert found.num_made_again > 0
    assert not any(told.values()), told
    assert not any(secret in output for secret in told)


def drain(environment: dict[str, str], node_id: str) -> None:
    """The notice that a cloud gives before it takes a machine back."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "drain-node",
            f"--address={environment['RAY_ADDRESS']}",
            f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=taken back",
            f"--deadline-remaining-seconds={NOTICE_SECONDS}",
        ],
        env=environment,
        check=True,
        timeout=120,
        capture_output=True,
    )
