"""Whether the cluster that RAY_ADDRESS names can be joined, found out in seconds; Ray itself tries for many minutes."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import AuthenticationError, RayError

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import within

CONNECT_SECONDS = 10.0
GCS_SECONDS = 25.0
"""Longest wait for Ray's control service, which retries by itself."""
NODES_SECONDS = 10.0
"""Longest wait for a node of a cluster that is just starting."""
_REMEDY = "start the cluster, or correct or unset RAY_ADDRESS"


def check_answers(address: str) -> None:
    """Return if `address` is that of a cluster with a living node; of ``auto``, the one that Ray finds on this machine.

    Raises:
        UserError: it is not.
    """
    if address == "local":
        return
    if address == "auto":
        _check_found()
        return
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise _refusal(address, f"no answer ({error})") from error
    if address.startswith("ray://"):
        # Ray's client speaks to a server of its own, which says itself what it lacks.
        return
    try:
        alive = within(GCS_SECONDS, lambda: _wait_for_node(f"{host}:{port}"))
    except AuthenticationError as error:
        raise _refusal(
            address, "a refused token", "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"
        ) from error
    except TimeoutError as error:
        raise _refusal(address, f"something that is not Ray, or does not answer ({error})") from error
    except (RayError, RuntimeError) as error:
        raise _refusal(address, f"something that is not Ray ({' '.join(str(error).split())[:160]})") from error
    if not alive:
        raise _refusal(
            address,
            "a head without a living node: its raylet has died",
            "start the cluster again (`ray stop`, `ray start`)",
        )


def _check_found() -> None:
    try:
        found = canonicalize_bootstrap_address("auto")
    except ConnectionError as error:
        raise _refusal("auto", "none that runs on this machine") from error
    assert found is not None, "Ray raises where it finds none"
    try:
        check_answers(found)
    except UserError as error:
        raise _refusal("auto", f"{error.got} at {found}", error.remedy) from error


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme == "ray" and host and not parts.path:
        port = port or (10001 if address.startswith("ray://") else None)
        if port:
            return host, port
    remedy = "give HOST:PORT of the head, by default port 6379, or unset RAY_ADDRESS"
    if parts.scheme in ("http", "https"):
        remedy += "; the dashboard's address is for `ray job submit` (RAY_API_SERVER_ADDRESS)"
    raise UserError(f"RAY_ADDRESS={address}", got="no address of a cluster", expected="HOST:PORT", remedy=remedy)


def _wait_for_node(gcs: str) -> bool:
    """Whether one of the nodes lives; the control service itself believes for a while that a dead one does."""
    client = GcsClient(address=gcs)
    deadline = time.monotonic() + NODES_SECONDS
    while True:
        for node in client.get_all_node_info(timeout=5).values():
            # 0 is ALIVE.
            if node.state == 0 and _listens(node.node_manager_address, node.node_manager_port):
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True  # a node behind a firewall is Ray's business
    return True


def _refusal(address: str, got: str, remedy: str = _REMEDY) -> UserError:
    return UserError("Ray cluster", got=got, expected=f"a cluster at RAY_ADDRESS={address}", remedy=remedy)
