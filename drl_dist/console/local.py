"""A Ray head and an MLflow server on this machine that outlive the command: ``python -m drl_dist up`` and ``down``.

Addresses go to stdout as lines for a shell, everything else to stderr: ``eval "$(python -m drl_dist up)"``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from drl_dist.common.durations import duration
from drl_dist.common.errors import UserError
from drl_dist.common.validation import local_of
from drl_dist.console.options import FolderOptions, UpOptions
from drl_dist.console.servers import MLFLOW, RAY, RECORD, Running, locked, read_servers, write_servers
from drl_dist.data.filesystem import write_local
from drl_dist.localhost import MlflowServer, RayHead, StartError, end_on_signals
from drl_dist.localhost.jobs import STOP_SECONDS
from drl_dist.localhost.server import HOST

# File with the port that the MLflow server had last.
_PORT = "mlflow_port"


def up(options: UpOptions) -> int:
    """Start what does not run yet; the exit status.

    Raises:
        UserError: a port is taken, a server does not start, or the folder cannot be used. What this call started has
            been stopped.
    """
    end_on_signals()
    folder = local_of(options.folder, "option --folder").absolute()
    with locked(folder):
        servers = _living(read_servers(folder), folder)
        _refuse_other_ports(options, servers)
        before = dict(servers)
        try:
            if MLFLOW not in servers:
                servers[MLFLOW] = _start_mlflow(folder, options, servers.get(RAY))
                write_servers(folder, servers)
            if RAY not in servers:
                servers[RAY] = _start_ray(options, servers[MLFLOW])
            write_servers(folder, servers)
        except BaseException as error:
            for name in servers.keys() - before.keys():
                _say(f"stopping the {name} again")
                _end(servers[name])
            write_servers(folder, before)
            if not isinstance(error, StartError):
                raise
            _say(str(error))
            raise UserError(
                "python -m drl_dist up",
                got=str(error).splitlines()[0],
                expected="a server that starts",
                remedy="look at its last lines above",
            ) from error
    for name, server in servers.items():
        verb = "runs already" if name in before else "runs"
        _say(f"{name} {verb} at {server.address} (process {server.pid}, log {server.log})")
    if not before:
        _say(
            f"Jobs that are submitted have the head's environment, which is the one of this command: {sys.executable} "
            "and the variables set now. For others (credentials, say), run `python -m drl_dist down`, set them, and "
            "run this again."
        )
    for name, value in _exports(servers).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def down(options: FolderOptions) -> int:
    """Stop exactly what `up` started for a folder; data stay. The exit status.

    Raises:
        UserError: the record is damaged, or another command is at work.
    """
    folder = local_of(options.folder, "option --folder").absolute()
    if not (folder / RECORD).exists():
        print(f"nothing to stop: `python -m drl_dist up` has started nothing for {folder}")
        return 0
    with locked(folder):
        servers = read_servers(folder)
        # The head first: a job's last words go to MLflow.
        for name in sorted(servers, key=[RAY, MLFLOW].index):
            server = servers.pop(name)
            was_alive = server.is_alive
            _end(server)
            write_servers(folder, servers)
            state = "stopped" if was_alive else "had ended before"
            print(f"{server.name} (process {server.pid}) {state}", flush=True)
    print(f"MLflow's data stay in {folder / 'mlflow'}; `python -m drl_dist up` shows them again")
    return 0


def local_status(options: FolderOptions) -> int:
    """Say what `up` runs for a folder; 0 if all of it does, 1 otherwise.

    Raises:
        UserError: the record is damaged.
    """
    folder = local_of(options.folder, "option --folder").absolute()
    servers = read_servers(folder)
    if not servers:
        print(f"nothing runs: `python -m drl_dist up` has started nothing for {folder}")
        return 1
    all_run = True
    for server in servers.values():
        age = duration(max(0.0, time.time() - server.since))
        runs = server.is_alive and _listens(server.address)
        if not server.is_alive:
            state = f"has ended; it was started {age} ago (log {server.log}); `python -m drl_dist up` starts it again"
        elif not runs:
            state = f"process {server.pid} runs, but nothing listens there (log {server.log})"
        else:
            state = f"running for {age}, process {server.pid}"
        all_run = all_run and runs
        print(f"{server.name} {server.address}: {state}")
    return 0 if all_run else 1


def _living(servers: Mapping[str, Running], folder: Path) -> dict[str, Running]:
    """Those that still run; what others left behind is cleared away."""
    living = {name: server for name, server in servers.items() if server.is_alive}
    for name in servers.keys() - living.keys():
        _say(f"the {name} (process {servers[name].pid}) has ended since it was started; a new one takes its place")
        _end(servers[name])
    if servers.keys() != living.keys():
        write_servers(folder, living)
    return living


def _refuse_other_ports(options: UpOptions, servers: Mapping[str, Running]) -> None:
    wanted = {"--mlflow-port": (options.mlflow_port, MLFLOW), "--dashboard-port": (options.dashboard_port, RAY)}
    for option, (port, name) in wanted.items():
        if port is None:
            continue
        if name in servers and urlsplit(servers[name].address).port != port:
            raise UserError(
                f"option {option}",
                got=port,
                expected=f"{urlsplit(servers[name].address).port}, where the {name} runs already",
                remedy="leave the option out, or run `python -m drl_dist down` first",
            )
        if name not in servers:
            _refuse_taken(port, option)


def _refuse_taken(port: int, what: str) -> None:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError as error:
            raise UserError(
                what if what.startswith("the") else f"option {what}",
                got=f"port {port}, which is taken ({error.strerror})",
                expected="a free port",
                remedy="choose another one, or leave the option out",
            ) from error


def _start_mlflow(folder: Path, options: UpOptions, head: Running | None) -> Running:
    port = options.mlflow_port or _earlier_port(folder)
    if options.mlflow_port is None and head is not None:
        # Jobs of the head that runs know the server by this address.
        port = urlsplit(head.environment["MLFLOW_TRACKING_URI"]).port
        assert port is not None
        _refuse_taken(port, "the MLflow server that the running Ray head knows")
    _say("starting an MLflow server")
    server = MlflowServer(folder / "mlflow", port=port).start()
    write_local(folder / _PORT, f"{server.port}\n".encode())
    environment = server.environment()
    return Running.of(server, address=server.uri, environment=environment, scratch=None)


def _earlier_port(folder: Path) -> int | None:
    """The port that the folder's MLflow server had, so that addresses of pages stay; None if it is not free."""
    try:
        port = int((folder / _PORT).read_text())
        _refuse_taken(port, "the earlier")
    except (OSError, ValueError, UserError):
        return None
    return port


def _start_ray(options: UpOptions, mlflow: Running) -> Running:
    num_cpus = options.num_cpus or len(os.sched_getaffinity(0))
    _say(f"starting a Ray head with {num_cpus} {'CPU' if num_cpus == 1 else 'CPUs'}")
    variables = {**mlflow.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    head = RayHead(num_cpus, environment=variables, dashboard_port=options.dashboard_port)
    try:
        head.start()
    except BaseException:
        shutil.rmtree(head.folder, ignore_errors=True)
        raise
    environment = head.environment() | mlflow.environment
    return Running.of(head, address=head.address, environment=environment, scratch=head.folder)


def _end(server: Running) -> None:
    server.end()
    if server.scratch is not None:
        # The folder that this program made for the head's sockets and logs.
        with suppress(FileNotFoundError):
            shutil.rmtree(server.scratch)


def _exports(servers: Mapping[str, Running]) -> dict[str, str]:
    return servers[MLFLOW].environment | servers[RAY].environment


def _listens(address: str) -> bool:
    parts = urlsplit(address)
    with socket.socket() as connection:
        connection.settimeout(3)
        return connection.connect_ex((parts.hostname or HOST, parts.port or 0)) == 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
