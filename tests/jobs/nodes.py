"""A second node beside a Ray head, on the same machine."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from drl_dist.localhost import RayHead
from drl_dist.localhost.ray_head import RayServer
from drl_dist.localhost.server import HOST, free_ports
from tests.support import subprocess_environment

# Ray refuses a second node to a head that lives on 127.0.0.1, and seeks that at this machine's other address.
_START = """
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts.scripts import main
main()
"""


def nodes(head: RayHead) -> dict[str, str]:
    """State of each node, ALIVE or DEAD, by its id."""
    token = head.environment()["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(f"{head.address}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        summary = json.load(answer)["data"]["summary"]
    return {node["raylet"]["nodeId"]: node["raylet"]["state"] for node in summary if "nodeId" in node["raylet"]}


class RayNode(RayServer):
    """One CPU that joins a head's cluster."""

    def __init__(self, head: RayHead, log: Path) -> None:
        super().__init__("Ray node", log, 120)
        self.head, self._before = head, set(nodes(head))
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port")
        self._ports = dict(zip((*names, "metrics-export-port"), free_ports(4), strict=True))

    @property
    def node_id(self) -> str:
        """Of the only node that came since this one was made."""
        (found,) = nodes(self.head).keys() - self._before
        return found

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-c",
            _START,
            "start",
            "--block",
            "--disable-usage-stats",
            "--log-style=record",
            f"--address={self.head.environment()['RAY_ADDRESS']}",
            f"--node-ip-address={HOST}",
            "--num-cpus=1",
            "--object-store-memory=100000000",
            *(f"--{name}={port}" for name, port in self._ports.items()),
        ]

    def server_environment(self) -> dict[str, str]:
        environment = subprocess_environment(self.head.environment())
        # The command takes it for a head to join twice.
        del environment["RAY_ADDRESS"]
        return environment

    def is_ready(self) -> bool:
        return any(state == "ALIVE" for name, state in nodes(self.head).items() if name not in self._before)
