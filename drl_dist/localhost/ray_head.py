"""A Ray head that listens only on this machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from drl_dist.localhost.server import HOST, LocalServer, StartError, fetch, free_ports

_ATTEMPTS = 3

# Without this variable, Ray replaces 127.0.0.1 by the machine's external address and listens on that. 0 means that the
# machine cannot be part of a cluster of several; it works on every system, despite its name.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# When memory is short, Ray ends processes that have had no work yet before those at work only if they are larger than
# this, by default a GiB, which spare processes of training are not. Nodes read it when they start.
IDLE_FIRST = {"RAY_idle_worker_killing_memory_threshold_bytes": str(100 * 2**20)}


# Ray's dashboard starts processes through a socket TMPDIR/pymp-xxxxxxxx/listener-xxxxxxxx, and a socket's path has at
# most 107 bytes.
_LONGEST_TMPDIR = 70


def short_tmpdir() -> dict[str, str]:
    """A short TMPDIR for Ray's own processes if the current one is too long for their sockets, else nothing."""
    return {"TMPDIR": "/tmp"} if len(os.fsencode(os.environ.get("TMPDIR", ""))) > _LONGEST_TMPDIR else {}


class RayServer(LocalServer):
    """A node of a Ray cluster, whose start is repeated if the machine was too slow."""

    def start(self) -> Self:
        # Ray allows its processes 30 s to connect to each other, which is too short on a busy machine.
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return super().start()
            except StartError as error:
                if attempt == _ATTEMPTS or "timed out during startup" not in str(error):
                    raise
                print(f"{self.name}: too slow to start, attempt {attempt + 1} of {_ATTEMPTS}", file=sys.stderr)
        raise AssertionError("unreachable")


class RayHead(RayServer):
    """A one-node Ray cluster that only holders of its random token can use.

    Args:
        num_cpus: CPUs that Ray schedules.
        object_store_bytes: size of the shared-memory object store.
        environment: variables of the head, and so of every job and worker, in addition to those of this process.
        start_seconds: seconds within which it must be ready.
        dashboard_port: port of `address`, by default a free one.
    """

    def __init__(
        self,
        num_cpus: int = 2,
        *,
        object_store_bytes: int = 200_000_000,
        environment: Mapping[str, str] | None = None,
        start_seconds: float = 300,
        dashboard_port: int | None = None,
    ) -> None:
        # Not in $TMPDIR, which may be long: Ray's sockets are deep below this folder, with paths of at most 107 bytes.
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        except OSError as error:
            raise StartError(f"Ray head: no folder for its sockets and logs can be made in /tmp ({error})") from error
        super().__init__("Ray head", self.folder / "head.log", start_seconds)
        self.num_cpus, self.object_store_bytes = num_cpus, object_store_bytes
        self._extra = dict(environment or {})
        self._token = secrets.token_hex(32)
        names = (
            "gcs",
            "dashboard",
            "client",
            "agent-http",
            "agent-grpc",
            "runtime-env",
            "metrics",
            "dashboard-metrics",
            "autoscaler-metrics",
        )
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        if dashboard_port is not None:
            self._ports["dashboard"] = dashboard_port

    @property
    def address(self) -> str:
        """Address of the dashboard, and for the option ``--address`` of ``ray job submit``."""
        return f"http://{HOST}:{self._ports['dashboard']}"

    @property
    def metrics_address(self) -> str:
        """Address that Prometheus scrapes; Ray serves it without a token."""
        return f"http://{HOST}:{self._ports['metrics']}/metrics"

    def environment(self) -> dict[str, str]:
        """Environment variables with which ``ray job submit`` and ``ray.init`` connect to this head."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_ADDRESS": f"{HOST}:{self._ports['gcs']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            **LOOPBACK_ONLY,
        }

    def command(self) -> list[str]:
        ports = self._ports
        return [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            "--log-style=record",
            f"--temp-dir={self.folder}",
            f"--node-ip-address={HOST}",
            f"--dashboard-host={HOST}",
            f"--num-cpus={self.num_cpus}",
            f"--object-store-memory={self.object_store_bytes}",
            f"--port={ports['gcs']}",
            f"--dashboard-port={ports['dashboard']}",
            f"--ray-client-server-port={ports['client']}",
            f"--dashboard-agent-listen-port={ports['agent-http']}",
            f"--dashboard-agent-grpc-port={ports['agent-grpc']}",
            f"--runtime-env-agent-port={ports['runtime-env']}",
            f"--metrics-export-port={ports['metrics']}",
        ]

    def server_environment(self) -> dict[str, str]:
        # `python` in an entry point must be this interpreter.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN_PATH"}
        mine = self.environment() | {
            "DASHBOARD_METRIC_PORT": str(self._ports["dashboard-metrics"]),
            "AUTOSCALER_METRIC_PORT": str(self._ports["autoscaler-metrics"]),
        }
        del mine["RAY_ADDRESS"]  # `ray start --head` refuses to join another cluster
        inherited.pop("RAY_ADDRESS", None)
        return IDLE_FIRST | inherited | short_tmpdir() | self._extra | mine | {"PATH": path}

    def is_ready(self) -> bool:
        try:
            response = fetch(f"{self.address}/nodes?view=summary", {"Authorization": f"Bearer {self._token}"})
        except OSError:
            return False
        nodes = json.loads(response)["data"]["summary"]
        return any(node["raylet"].get("state") == "ALIVE" for node in nodes)

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.folder, ignore_errors=True)
