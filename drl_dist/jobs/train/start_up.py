"""What the driver says between its own start and that of the first worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import RaySystemError, RpcError

from drl_dist.common.waiting import Waiting
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.common.cluster import room_wanted
from drl_dist.jobs.train.stop import KeyInStore

_LOOK_SECONDS = 0.5


@contextmanager
def start_up_told(run: RunConfig, arrival: KeyInStore) -> Iterator[None]:
    """Say in the body, which starts the workers, what they wait for until the first of them is there.

    Args:
        run: says which workers.
        arrival: set by the first worker.
    """
    with told_until(arrival, f"run {run.run_name}", lambda: workers_wanted(run)):
        yield


@contextmanager
def told_until(arrival: KeyInStore, prefix: str, what: str | Callable[[], str]) -> Iterator[None]:
    """Say in the body what is waited for until another process, which speaks for itself then, sets a key.

    Args:
        arrival: the key.
        prefix, what: as for `Waiting`.
    """
    is_over = threading.Event()
    with Waiting(prefix) as waiting:
        waiting.begin(what)
        watcher = threading.Thread(target=_watch, args=(arrival, waiting, is_over), daemon=True, name="arrival")
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()


def _watch(arrival: KeyInStore, waiting: Waiting, is_over: threading.Event) -> None:
    while not is_over.wait(_LOOK_SECONDS):
        try:
            if not arrival.is_there():
                continue
            waiting.end()
            arrival.remove()
            return
        except (RpcError, RaySystemError):
            # A head that is away for a moment; the run itself says so where it matters.
            continue


def workers_wanted(run: RunConfig) -> str:
    """Which workers a run wants, and what the cluster has free."""
    return room_wanted(run.num_workers, cpus=run.cpus_per_worker, gpus=int(run.use_gpu))
