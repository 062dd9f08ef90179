"""Real servers for the tests that need them, one of each per process that runs tests, and how tests are shared out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import schedule
from tests.helpers.forked import FOLDER, ROOT, ForkServer, count_forked_processes_below_their_clients

if TYPE_CHECKING:
    from xdist.remote import Producer

    from drl_dist.localhost import MlflowServer, RayHead

FORK_SERVER = pytest.StashKey[ForkServer]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "integration: starts real servers or other processes; slow")
    config.addinivalue_line("markers", "faults: kills processes or takes nodes away")
    config.addinivalue_line("markers", "slow: computes for more than a few seconds")
    if hasattr(config, "workerinput"):
        count_forked_processes_below_their_clients()
    elif config.getoption("tx", None):
        # Processes that share the cores.
        os.environ["OMP_NUM_THREADS"] = "1"
        # A hundred processes would compile the project a hundred times.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        if os.environ.get("DRL_FORKED_PYTHON", "1") != "0":
            _start_fork_server(config)


def _start_fork_server(config: pytest.Config) -> None:
    """Let all processes that this session starts be forked from one that has imported the libraries."""
    os.environ["PYTHONUNBUFFERED"] = "1"
    foreign = ("RAY_", "MLFLOW_")
    server = ForkServer({name: value for name, value in os.environ.items() if not name.startswith(foreign)})
    server.start()
    config.stash[FORK_SERVER] = server
    os.environ[FOLDER] = str(server.folder)
    # The processes that run tests, and all that they start.
    sys.executable = str(server.python)


def pytest_unconfigure(config: pytest.Config) -> None:
    if server := config.stash.get(FORK_SERVER, None):
        server.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    schedule.check(items)
    if hasattr(config, "workerinput"):
        schedule.order(items)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> schedule.GroupScheduling:
    return schedule.GroupScheduling(config, log)


RUNNING_HEAD = pytest.StashKey["RayHead"]()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the Ray head after the last test that uses it: a head that nobody uses takes a tenth of a core."""
    is_last = nextitem is None or schedule.group(nextitem.nodeid) != schedule.group(item.nodeid)
    is_shared = hasattr(item.config, "workerinput") and schedule.module(item.nodeid) in schedule.HEAD_GROUPS
    if is_last and is_shared and RUNNING_HEAD in item.config.stash:
        item.config.stash[RUNNING_HEAD].stop()


@pytest.fixture(scope="session", autouse=True)
def _from_the_repository_root() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="session")
def ray_head(pytestconfig: pytest.Config) -> Iterator[RayHead]:
    """A Ray head with two CPUs."""
    from drl_dist.localhost import RayHead

    with RayHead(num_cpus=2, environment={"OMP_NUM_THREADS": "1"}) as head:
        pytestconfig.stash[RUNNING_HEAD] = head
        yield head


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server over a fresh folder."""
    from drl_dist.localhost import MlflowServer

    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def server_environment(ray_head: RayHead, mlflow_server: MlflowServer) -> dict[str, str]:
    """For child processes that use both servers."""
    from tests.support import subprocess_environment

    return subprocess_environment(ray_head.environment(), mlflow_server.environment())


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the handwritten digits."""
    from tests.support import subprocess_environment

    # A name that URLs would be read into.
    folder = tmp_path_factory.mktemp("digits") / "digits::v2 #1 [a]"
    subprocess.run(
        [sys.executable, "-m", "datasets_prep.digits", "--out", str(folder), "--workers", "1"],
        cwd=ROOT,
        env=subprocess_environment(),
        check=True,
        timeout=120,
    )
    return folder


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[[int], Path]:
    """A checkpoint folder of a step; its tensors all equal the step."""

    import torch

    from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
    from drl_dist.config.presets import preset

    def make(step: int) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        parts = {name: {"w": torch.full((4, 4), float(step))} for name in ("weights", "ema", "optimizer")}
        state = CheckpointState(
            step=step, images_seen=64 * step, next_position=64 * step, seed=0, data_fingerprint="f" * 64, world_size=1
        )
        write_checkpoint(folder, parts, state, preset("digits"))
        return folder

    return make
