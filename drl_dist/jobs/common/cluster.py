"""Joining a Ray cluster, and asking what it has."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address
from ray._private.state import state as cluster_state
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.exceptions import AuthenticationError, RayError

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.waiting import Waiting
from drl_dist.data.filesystem import ADDRESS_VARIABLES, within
from drl_dist.jobs.common.ray_folders import session_folder, warn_of_large_folder
from drl_dist.localhost.ray_head import short_tmpdir

_START_ATTEMPTS = 3
_LOCAL_REMEDY = "look at the space in RAY_TMPDIR, TMPDIR, /tmp and /dev/shm, at `ulimit -a`, or join a cluster"
LOOPBACK = "127.0.0.1"

Result = TypeVar("Result")
_NO_PRESTART = {"RAY_prestart_worker_first_driver": "0"}


@contextmanager
def cluster(*, prestart: bool = True, state_api: bool = False) -> Iterator[None]:
    """Be connected to the cluster that RAY_ADDRESS names, as in a submitted job, or to one of our own on this machine.

    A process that is connected already, as a trial of a sweep is, stays so. The variables that say where storage is
    reach every process of the job.

    Args:
        prestart: let a Ray of our own start worker processes before they are asked for. A job whose workers have
            variables of their own, as Ray Train's have, cannot use them.
        state_api: give a Ray of our own the dashboard's processes, ten of them, which the actor needs that frees the
            places of a trial whose controller has died. They would hold up the first worker of other jobs.

    Raises:
        UserError: the cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    warn_of_large_folder()
    address = os.environ.get("RAY_ADDRESS")
    with Waiting("Ray", stream=sys.stderr) as waiting:
        waiting.begin(f"joining the cluster at {address}" if address else "starting on this machine", is_told=False)
        _enter(address, prestart=prestart, state_api=state_api)
    try:
        yield
    finally:
        ray.shutdown()


def _enter(address: str | None, *, prestart: bool, state_api: bool) -> None:
    if address:
        check_answers(address)
    # Ray refuses a variable that the submitted job has too; that one reaches every process anyway.
    job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    submitted = (job.get("runtime_env") or {}).get("env_vars") or {}
    variables = {name: os.environ[name] for name in ADDRESS_VARIABLES if name in os.environ and name not in submitted}
    _join(address, variables, prestart=prestart, state_api=state_api)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep this program's handler of SIGTERM, in whose place Ray puts one of its own when it starts."""
    ours = signal.getsignal(signal.SIGTERM)
    if not callable(ours) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as end:
        # What Ray's handler makes of a signal that came meanwhile.
        if end.code == signal.SIGTERM:
            ours(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, ours)


@contextmanager
def _environment_of_ray(variables: Mapping[str, str]) -> Iterator[None]:
    """Start Ray's own processes with variables that are not this process's."""
    kept = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _join(address: str | None, variables: Mapping[str, str], *, prestart: bool, state_api: bool) -> None:
    short = {} if address else short_tmpdir()
    own = short | ({} if prestart else _NO_PRESTART)
    # The workers get this process's TMPDIR by the runtime environment.
    variables = {name: os.environ[name] for name in short} | dict(variables)
    folder = None if address else session_folder()
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        try:
            # A running Ray that happens to be on this machine is somebody else's.
            with _signals_kept(), _environment_of_ray({} if address else own):
                ray.init(
                    address=address or "local",
                    logging_level=logging.WARNING,
                    runtime_env={"env_vars": dict(variables)},
                    include_dashboard=None if address or state_api else False,
                    _temp_dir=folder,
                )
            return
        except Exception as error:
            ray.shutdown()
            # Ray gives its own processes 30 s to find each other, and raises the bare class when they take longer.
            is_slow = "timed out during startup" in str(error)
            if is_slow and attempts_left:
                print("Ray: too slow to start on this busy machine, trying again", file=sys.stderr, flush=True)
                continue
            # Anything that the machine refuses is an OSError: folders, memory, ports, files, processes.
            if not is_slow and not isinstance(error, OSError | RuntimeError | ValueError):
                raise
            raise UserError(
                "Ray cluster",
                got=" ".join(str(error).split())[:200],
                expected=f"a cluster at {address}" if address else "a Ray of its own on this machine",
                remedy="start the cluster, or correct or unset RAY_ADDRESS" if address else _LOCAL_REMEDY,
            ) from error


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """The future result of `work`, which runs in a thread that does not keep the process alive."""
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name="background").start()
    return outcome


def capacity(resource: str) -> int:
    """How much of a resource, ``"CPU"`` or ``"GPU"``, the cluster has or can grow to; what is in use counts."""
    # What an autoscaler may add; Ray Train asks the same before it waits for workers.
    possible = cluster_state.get_max_resources_from_cluster_config() or {}
    return max(int(ray.cluster_resources().get(resource, 0)), int(possible.get(resource, 0)))


def check_capacity(num_workers: int, *, cpus: int, gpus: int) -> None:
    """Return if the cluster is, or can grow, large enough; what other jobs hold is not counted as missing.

    Raises:
        UserError: it is not.
    """
    for name, per_worker in (("CPU", cpus), ("GPU", gpus)):
        has = capacity(name)
        if num_workers * per_worker > has:
            raise UserError(
                f"{counted(num_workers, 'worker')} of {per_worker} {name}",
                got=f"a cluster with {has} {name}",
                expected=f"{num_workers * per_worker} {name}",
                remedy="use fewer workers or a larger cluster",
            )


def room_wanted(num_workers: int, *, cpus: int, gpus: int) -> str:
    """What workers that are to start need, of each of them, and what of it the cluster has free."""
    needs = {name: num_workers * each for name, each in (("CPU", cpus), ("GPU", gpus)) if each}
    wanted = " and ".join(counted(count, name) for name, count in needs.items())
    has, free = ray.cluster_resources(), ray.available_resources()
    state = " and ".join(f"{free.get(name, 0):g} of {counted(int(has.get(name, 0)), name)}" for name in needs)
    return f"{counted(num_workers, 'worker')} to start on {wanted}; free now: {state}"


def is_loopback() -> bool:
    """Whether the cluster lives on 127.0.0.1 alone."""
    return ray.util.get_node_ip_address() == LOOPBACK


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
