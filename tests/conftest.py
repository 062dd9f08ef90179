"""Real servers for the tests that need them, one of each per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drl_dist.localhost import MlflowServer, RayHead
from tests.support import ROOT, subprocess_environment


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "integration: starts real servers or other processes; slow")


@pytest.fixture(scope="session", autouse=True)
def _from_the_repository_root() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A Ray head with two CPUs."""
    with RayHead(num_cpus=2, environment={"OMP_NUM_THREADS": "1"}) as head:
        yield head


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server over a fresh folder."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def server_environment(ray_head: RayHead, mlflow_server: MlflowServer) -> dict[str, str]:
    """For child processes that use both servers."""
    return subprocess_environment(ray_head.environment(), mlflow_server.environment())
