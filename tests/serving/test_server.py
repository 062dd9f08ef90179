"""``jobs/serve.py`` as users run it: with visitors, without some of its processes, and ended."""

from __future__ import annotations

import asyncio
import base64
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobSubmissionClient

from benchmarks.serving_load import hostile, parts
from benchmarks.serving_load.server import TITLES, ServeJob
from benchmarks.serving_load.visitors import crowd
from drl_dist.library.load import load
from drl_dist.library.model import Model
from drl_dist.localhost import RayHead, submit_job
from drl_dist.localhost.server import HOST, free_ports
from tests.helpers.served import Client
from tests.support import ROOT, subprocess_environment, titled, wait_for, write_tiny_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", width=8, num_chain_steps=10)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return load(checkpoint)


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """Of this module alone, which counts its processes and reads its logs."""
    with RayHead(num_cpus=2, environment={"OMP_NUM_THREADS": "1"}) as head:
        yield head


@pytest.fixture(scope="module")
def server(head: RayHead, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeJob]:
    """The server that all tests visit but the last ones; the first of these ends it."""
    with ServeJob(head, checkpoint, tmp_path_factory.mktemp("server") / "log", ["--max-batch=4"]) as server:
        yield server


def test_each_of_many_visitors_gets_the_image_of_his_seed(server: ServeJob, model: Model) -> None:
    found = parts.company(server, model, 24)
    assert (found["lost"], found["wrong"], found["errors"]) == (0, 0, [])


@pytest.mark.faults
def test_a_lost_replica_is_a_pause(server: ServeJob, model: Model) -> None:
    before = server.pids("replica")
    found = parts.loss(server, model, 24, 50, lambda: server.kill("replica"))
    assert (found.compared.lost, found.compared.wrong, found.compared.errors) == (0, 0, [])
    assert found.told >= 1
    assert server.pids("replica") != before


@pytest.mark.faults
def test_who_loses_the_front_gets_the_image_by_asking_again(server: ServeJob, model: Model) -> None:
    found = parts.loss(server, model, 24, 50, lambda: server.kill("front"))
    assert found.asked_again is not None and found.asked_again.visitors == found.compared.lost > 0
    assert (found.asked_again.lost, found.asked_again.wrong, found.compared.wrong) == (0, 0, 0)


def test_who_leaves_is_not_waited_for_and_prometheus_hears_of_everyone(server: ServeJob) -> None:
    done = server.visits("done")
    found = parts.leavers(server, 10)
    assert (found["next_error"], found["active"], found["waiting"]) == (None, 0, 0)
    wait_for(lambda: server.visits("done") > done, 60)
    assert server.metric("ray_drl_serve_image_seconds_count") == server.visits("done")
    assert server.metric("ray_drl_serve_images_per_call") is not None
    assert server.visits("failed") == 0


def test_broken_pictures_and_bodies_too_large_are_refused(server: ServeJob) -> None:
    sends = hostile.attacks()
    front = server.pids("front")
    wanted = {
        "a PNG of 200 megapixels": "400",
        "a broken PNG: cut off": "400",
        "a broken PNG: a text of 200 MiB": "400",
        "no JSON": "400",
        "a body of 9 MiB": "413",
        "a body that never ends": "413",
    }
    for name, status in wanted.items():
        answers = asyncio.run(hostile.attack(server.address, sends[name]))
        assert [answer.partition(" ")[0] for answer in answers] == [status], (name, answers)
    assert server.pids("front") == front
    # What is refused is no error in the log either, which the last test looks at.
    client = Client(server.address)
    assert "without labels" in client.ask("/api/sample?label=3").json()["error"]
    picture = base64.b64encode(client.ask("/api/sample").body).decode()
    assert "without labels" in client.ask("/api/log_density", {"image": picture, "label": "3"}).json()["error"]
    (watched,) = asyncio.run(crowd(server.address, [1]))
    assert watched.error is None


def test_ctrl_c_ends_it_with_status_0_and_no_process_is_left(head: RayHead, server: ServeJob) -> None:
    assert server.interrupt(signal.SIGINT) == 0
    lines = server.log.read_text().splitlines()
    assert lines[-1] == "stopped"
    # Neither visitors who left nor the end itself are errors.
    assert not any("graceful_shutdown" in line or "Traceback" in line for line in lines)
    wait_for(lambda: not serve_processes(head), 30)


def serve_processes(head: RayHead) -> list[int]:
    return [pid for title in [*TITLES.values(), "ray::ServeController"] for pid in titled(head, title)]


class Submitted:
    """``jobs/serve.py`` as a submitted job, with a token."""

    def __init__(self, head: RayHead, checkpoint: Path, folder: Path) -> None:
        self.head, self.token_file, self.lines = head, folder / "token", list[str]()
        self.port = free_ports(1)[0]
        words = [f"--model={checkpoint}", f"--port={self.port}", f"--token-file={self.token_file}"]
        entry = ["python", "jobs/serve.py", *words]
        self._thread = threading.Thread(
            target=submit_job,
            args=(head, entry),
            kwargs={"working_dir": ROOT, "submission_id": "serve", "echo": self.lines.append, "timeout_seconds": 200},
        )
        self._thread.start()

    def is_ready(self) -> bool:
        return any(line.startswith("API: ") for line in self.lines)

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.head.address, headers={"Authorization": f"Bearer {self.ray_token}"})

    @property
    def ray_token(self) -> str:
        return self.head.environment()["RAY_AUTH_TOKEN"]

    def stop(self) -> str:
        """Stop the job; its status."""
        self.client().stop_job("serve")
        self._thread.join(100)
        return str(self.client().get_job_status("serve"))


@pytest.fixture(scope="module")
def submitted(
    head: RayHead, server: ServeJob, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Submitted]:
    """After the other one has ended: the cluster has room for one."""
    server.stop()
    job = Submitted(head, checkpoint, tmp_path_factory.mktemp("submitted"))
    wait_for(job.is_ready, 120)
    yield job
    job.stop()


def test_a_submitted_server_lets_in_those_with_its_token(submitted: Submitted) -> None:
    token, client = submitted.token_file.read_text().strip(), Client(f"http://{HOST}:{submitted.port}")
    assert submitted.token_file.stat().st_mode & 0o777 == 0o600
    entered = client.ask(f"/?token={token}")
    assert (entered.status, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    name = cookie.partition("=")[0]
    assert cookie.startswith(f"{name}={token};") and "HttpOnly" in cookie
    for allowed in ({"Authorization": f"Bearer {token}"}, {"Cookie": cookie.partition(";")[0]}):
        assert client.ask("/api/sample?seed=3", headers=allowed).body.startswith(b"\x89PNG")
    for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"{name}=wrong"}):
        refused = client.ask("/api/sample?seed=3", headers=wrong)
        assert refused.status == 401 and refused.json()["error"].startswith("token: got ")
    assert client.ask(f"/api/sample?seed=3&token={token}").status == 303


def test_it_ends_with_its_job_and_the_token_is_written_down_nowhere(head: RayHead, submitted: Submitted) -> None:
    token = submitted.token_file.read_text().strip()
    assert submitted.stop() == "STOPPED"
    assert "stopped" in submitted.lines
    assert not any(token in line for line in submitted.lines)
    files = [path for path in head.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("serve" in path.name for path in files)
    for path in files:
        assert token.encode() not in path.read_bytes(), path
    wait_for(lambda: not serve_processes(head), 30)


def serve_command(head: RayHead, *words: str) -> str:
    """Output of ``serve``, as on a machine with a tunnel to the dashboard."""
    done = subprocess.run(
        [sys.executable, "-m", "ray.serve.scripts", words[0], f"--address={head.address}", *words[1:]],
        env=subprocess_environment(head.environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_config_of_the_cluster_is_deployed(
    head: RayHead, checkpoint: Path, model: Model, submitted: Submitted, tmp_path: Path
) -> None:
    submitted.stop()
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    args = config["applications"][0]["args"]
    port = config["http_options"]["port"] = free_ports(1)[0]
    args |= {"model": str(checkpoint), "use_gpu": False, "cpus_per_replica": 1, "max_replicas": 1}
    del args["data"]
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    serve_command(head, "deploy", str(path))
    address = f"http://{HOST}:{port}"

    def is_ready() -> bool:
        try:
            return Client(address).ask("/api/health").status == 200
        except OSError:
            return False

    wait_for(is_ready, 120)
    (watched,) = asyncio.run(crowd(address, [5]))
    (expected,) = parts.expected_images(model, range(5, 6))
    assert watched.image is not None and int((watched.image.int() - expected.int()).abs().max()) <= 1
    # A wrong field is refused in one sentence, and those who are served stay so.
    path.write_text(yaml.safe_dump(config | {"applications": [config["applications"][0] | {"args": {"modle": "x"}}]}))
    serve_command(head, "deploy", str(path))
    wait_for(lambda: "field modle: got a field that does not exist" in serve_command(head, "status"), 60)
    assert is_ready()
    serve_command(head, "shutdown", "-y")
    wait_for(lambda: not serve_processes(head), 60)
