"""The libraries that forked processes find imported, and what these read from the environment meanwhile."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from collections.abc import Callable, ItemsView
from pathlib import Path
from typing import Any, ClassVar

MODULES = (
    "torch",
    "torch.distributed",
    "torch.distributed.elastic",
    "torch.nn.parallel",
    "torch.utils.data",
    "torch._dynamo",
    "numpy",
    "numpy.random",
    "ray",
    "ray.train",
    "ray.train.torch",
    "ray.tune",
    "ray.util.state",
    "ray._private.state",
    "ray.job_submission",
    "ray.scripts.scripts",
    "ray.dashboard.dashboard",
    "ray.dashboard.head",
    "ray.dashboard.agent",
    "ray._private.runtime_env.agent.runtime_env_agent",
    "ray._private.workers.default_worker",
    "mlflow",
    "mlflow.cli",
    "mlflow.server",
    "mlflow.server.fastapi_app",
    "mlflow.store.tracking.sqlalchemy_store",
    "uvicorn",
    "pydantic",
    "tyro",
    "rich.progress",
    "safetensors.torch",
    "fsspec",
    "gcsfs",
    "s3fs",
    "webdataset",
    "pyarrow",
    "pyarrow.parquet",
    "PIL.Image",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "sklearn.datasets",
    "scipy.linalg",
    "optuna",
    "arviz_stats",
    "ruamel.yaml",
    "lmdb",
)
"""What commands, workers and servers import."""

NATIVE = ("OMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_", "MALLOC_", "GOMP_", "NUMEXPR_", "TORCH_CPP_", "PYTORCH_")
READ_THROUGH = ("FSSPEC_", "TQDM_")
"""Names, by their beginning, that native code reads when it is loaded, or that libraries look through all names for."""

PER_PROCESS = {
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    # Read when it is called.
    "PYTHONBREAKPOINT",
    "PATH",
    "PWD",
    "TMPDIR",
    "_",
    "SHLVL",
    "OLDPWD",
    "COLUMNS",
    "LINES",
    # Where matplotlib keeps its list of fonts, which is read by then.
    "XDG_CACHE_HOME",
    # The default of `mlflow gc`.
    "MLFLOW_TRACKING_URI",
    # Telemetry is off.
    "PYTEST_CURRENT_TEST",
    "_MLFLOW_TELEMETRY_SESSION_ID",
    # There is no such device, or torch looks when it first needs one.
    "CUDA_VISIBLE_DEVICES",
    # An allocator of Ray's for its own servers.
    "LD_PRELOAD",
    "DASHBOARD_METRIC_PORT",
    "AUTOSCALER_METRIC_PORT",
}
"""Names that were read and may differ: what was read is set again for each child, or does not matter."""

PORTS = {
    "DASHBOARD_METRIC_PORT": ("ray.dashboard.consts", "ray.dashboard.head"),
    "AUTOSCALER_METRIC_PORT": (
        "ray.autoscaler._private.constants",
        "ray.autoscaler._private.monitor",
        "ray.autoscaler.v2.monitor",
    ),
}
"""Constants that are read from the environment, and the modules that hold them under the same name."""

SET_BEFORE = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SERVER_X_FRAME_OPTIONS": "SAMEORIGIN",
    "RAY_enable_pipe_based_agent_to_parent_health_check": "1",
    # The storage emulator does not answer what else gcsfs asks.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}
"""What the project, Ray and MLflow put into the environment of processes that import them, where it is not set."""


FLAGS = {b"RAY_JOB_ID": b"@drl-job-id@", b"RAY_RAYLET_PID": b"@drl-raylet@"}
"""What Ray's native part reads once, when it is loaded, and each child has another of; with what marks its place."""


class _Recorded(type(os.environ)):
    """Remembers the names that are asked for; who looks through all of them asks for those in READ_THROUGH."""

    asked: ClassVar[set[str]] = set()

    def items(self) -> ItemsView[str, str]:
        return {key: super(_Recorded, self).__getitem__(key) for key in self}.items()

    def __getitem__(self, key: str) -> str:
        _Recorded.asked.add(os.fsdecode(key))
        return super().__getitem__(key)


def preload(log: Callable[[str], None]) -> set[str]:
    """Import all that can be; the names of the environment that were read meanwhile."""
    plain = os.environ.__class__
    # Arrow's allocator would start a thread.
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    os.environb.update(FLAGS)
    os.environ.__class__ = _Recorded
    try:
        _keep_random_numbers_apart()
        for name in MODULES:
            try:
                importlib.import_module(name)
            except ImportError as error:
                log(f"not imported: {name}: {error}")
    finally:
        os.environ.__class__ = plain
        measure_memory_in_short()
        for name in ("JE_ARROW_MALLOC_CONF", *map(os.fsdecode, FLAGS)):
            del os.environ[name]
    return _Recorded.asked - PER_PROCESS


def _keep_random_numbers_apart() -> None:
    """Have ids of actor classes, which some of Ray's modules make, drawn by the system: who first draws one by Ray's
    native part seeds that, and children that have the same seed make tasks of the same name."""
    actor = importlib.import_module("ray.actor")
    plain = actor.ActorClassID

    class FromSystem:
        @staticmethod
        def from_random() -> object:
            return plain(os.urandom(plain.size()))

    actor.ActorClassID = FromSystem


def measure_memory_in_short() -> None:
    """Let Ray's dashboard, which asks again and again how much memory each process has for itself, take what a line of
    the kernel says of it: forked processes have thousands of mappings, which take longer to add up than their work."""
    process = sys.modules["psutil"].Process
    kind = type(process().memory_full_info())

    def memory_full_info(self: Any) -> object:
        plain = self.memory_info()
        return kind(*plain, plain.rss - plain.shared, plain.rss, 0)

    process.memory_full_info = memory_full_info


def draws_of_two_children() -> list[bytes]:
    """Ids that Ray's native part draws in two forked processes."""
    raylet = sys.modules["ray._raylet"]
    drawn: list[bytes] = []
    for _ in range(2):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writes, raylet.NodeID.from_random().binary())
            os._exit(0)
        os.waitpid(child, 0)
        drawn.append(os.read(reads, 64))
        os.close(reads)
        os.close(writes)
    return drawn


def flag_addresses() -> dict[bytes, int]:
    """Where the text of `FLAGS` lies that Ray's native part keeps, a std::string behind its length and capacity; empty
    if it is not found so."""
    found: dict[bytes, list[int]] = {name: [] for name in FLAGS}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, _, _, _, *name = line.split(maxsplit=5)
        if not rights.startswith("rw") or (name and name[0] != "[heap]"):
            continue
        start, end = (int(number, 16) for number in span.split("-"))
        data = ctypes.string_at(start, end - start)
        for flag, mark in FLAGS.items():
            # A count of owners, of four bytes, and four that are anything.
            head = re.escape(len(mark).to_bytes(8, sys.byteorder) * 2 + bytes(4)) + b"(?s:.{4})"
            found[flag] += [start + at.start(1) for at in re.finditer(head + b"(" + re.escape(mark) + b"\0)", data)]
    if any(len(places) != 1 for places in found.values()):
        return {}
    return {flag: places[0] for flag, places in found.items()}


def set_flag(address: int, value: bytes) -> None:
    """Give a flag of Ray's native part another value, no longer than the one that it was loaded with."""
    ctypes.memmove(address, value + b"\0", len(value) + 1)
    ctypes.c_size_t.from_address(address - 24).value = len(value)
