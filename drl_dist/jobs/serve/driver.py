"""The server: checks, Ray Serve, and what is going on until it is stopped."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.waiting import Waiting
from drl_dist.data.index import open_index
from drl_dist.jobs.common.cluster import check_capacity, cluster
from drl_dist.jobs.serve.application import LOGGING, application
from drl_dist.jobs.serve.options import LOOPBACK_HOSTS, ServeOptions
from drl_dist.jobs.serve.pinned import pin_model
from drl_dist.jobs.serve.token import read_token
from drl_dist.jobs.serve.web.access import digest
from drl_dist.library.stored import TrainedModel
from drl_dist.localhost.server import fetch

NAME = "drl_dist"
"""Of the application."""
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 30.0
_END_SECONDS = 30.0


def serve_model(options: ServeOptions) -> int:
    """Serve until a signal; the exit status.

    Raises:
        UserError: something that the user gave cannot be used, or the server has ended.
    """
    _check_free(options.host, options.port)
    pinned, model = pin_model(options)
    _check_data(options, model)
    # A server that is refused leaves no token behind.
    token = None if options.token_file is None else read_token(options.token_file, create=True)
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _stopping() as stop, cluster():
        check_capacity(options.min_replicas, cpus=options.cpus_per_replica, gpus=int(options.use_gpu))
        _start(options)
        try:
            with Waiting("server", stream=sys.stderr) as waiting:
                waiting.begin(f"starting {counted(options.min_replicas, 'replica')} of {pinned.address}")
                _run(application(pinned, options, None if token is None else digest(token)))
                _check_answers(options, token)
            _say(options, pinned.address, model)
            _watch(stop)
        finally:
            _end()
    print("stopped", flush=True)
    return 0


def _start(options: ServeOptions) -> None:
    location = ProxyLocation.HeadOnly if options.host in LOOPBACK_HOSTS else ProxyLocation.EveryNode
    # A Serve that runs already keeps its own address.
    serve.start(
        proxy_location=location,
        http_options=HTTPOptions(host=options.host, port=options.port, request_timeout_s=None),
        logging_config=LOGGING,
    )


def _run(app: serve.Application) -> None:
    try:
        serve.run(app, name=NAME, route_prefix="/", logging_config=LOGGING)
    except (RayServeException, RuntimeError) as error:
        raise UserError(
            "server",
            got=" ".join(str(error).split())[:300],
            expected="replicas that start",
            remedy="look at the lines above",
        ) from error


def _check_answers(options: ServeOptions, token: str | None) -> None:
    # A Serve that ran before has an address of its own.
    url = f"http://{_shown(options.host)}:{options.port}/api/health"
    try:
        fetch(url, {} if token is None else {"Authorization": f"Bearer {token}"}, seconds=_ANSWER_SECONDS)
    except OSError as error:
        raise UserError(
            f"server at {url}",
            got=str(error),
            expected="an answer",
            remedy="start it on the head of the cluster, as `ray job submit` does, where no other Ray Serve runs "
            "(`serve shutdown` ends one)",
        ) from error


def _end() -> None:
    """Stop this application, and Ray Serve too where it has no other."""
    # Somebody else may have stopped all of it.
    with suppress(RayActorError, RayServeException):
        serve.delete(NAME)
        if not serve.status().applications:
            _end_serve()


def _end_serve() -> None:
    # `serve.shutdown` waits in a call that fails with the controller, which Ray reports as an error.
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    ray.get(controller.graceful_shutdown.remote(wait=False))
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        try:
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        except ValueError:
            return
        time.sleep(0.1)
    print("server: Ray Serve is still ending", file=sys.stderr, flush=True)


def _shown(host: str) -> str:
    """A host as it is written in a URL; of all addresses, that of this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _say(options: ServeOptions, address: str, model: TrainedModel) -> None:
    url = f"http://{_shown(options.host)}:{options.port}"
    print(f"serving {address}, step {model.step}, until Ctrl-C", flush=True)
    if options.token_file is None:
        print(f"page: {url}/", flush=True)
        if options.open_page:
            webbrowser.open(url)
    else:
        print(f"page: {url}/?token=TOKEN, with the token in {options.token_file}", flush=True)
    print(f"API: {url}/api", flush=True)


def _watch(stop: threading.Event) -> None:
    """Say when the number of replicas changes, until the stop."""
    before = ""
    while not stop.wait(_LOOK_SECONDS):
        status = _status()
        if status is None or status.status == ApplicationStatus.DEPLOY_FAILED:
            raise UserError(
                "server",
                got="an application that has ended" if status is None else status.message[:300],
                expected="one that runs",
                remedy="look at the lines above",
            )
        states = status.deployments["model"].replica_states if "model" in status.deployments else {}
        now = ", ".join(f"{counted(count, 'replica')} {state.lower()}" for state, count in sorted(states.items()))
        if now != before:
            print(f"{time.strftime('%H:%M:%S')} {now or 'no replica'}", flush=True)
            before = now


def _status() -> ApplicationStatusOverview | None:
    """None if there is no such application, or no Ray Serve."""
    try:
        return serve.status().applications.get(NAME)
    except (RayActorError, RayServeException):
        return None


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            got = "an address in use" if error.errno == errno.EADDRINUSE else str(error)
            raise UserError(
                f"--host {host} --port {port}",
                got=got,
                expected="a free port of an address of this machine",
                remedy="choose another one, or stop what listens there",
            ) from error


def _check_data(options: ServeOptions, model: TrainedModel) -> None:
    if options.data is not None:
        config = model.experiment.model
        open_index(options.data).check_model(resolution=config.resolution, channels=config.channels)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Signals set the event; a second one ends the process."""
    stop = threading.Event()

    def on_signal(signum: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
