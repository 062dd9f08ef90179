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
_RARE_LOOK_SECONDS = 3.0
"""While workers are at work."""


@contextmanager
def start_up_told(run: RunConfig, arrival: KeyInStore, restart: KeyInStore) -> Iterator[None]:
    """Say in the body, which starts the workers, what they wait for until the first of them is there, and again when
    they are restarted.

    Args:
        run: says which workers.
        arrival: set by the first worker, each time that it starts.
        restart: set when workers have ended and others are to start.
    """
    with told_until(arrival, f"run {run.run_name}", lambda: workers_wanted(run), again=restart):
        yield


@contextmanager
def told_until(
    arrival: KeyInStore, prefix: str, what: str | Callable[[], str], *, again: KeyInStore | None = None
) -> Iterator[None]:
    """Say in the body what is waited for until another process, which speaks for itself then, sets a key.

    Args:
        arrival: the key.
        prefix, what: as for `Waiting`.
        again: a key whose setting begins it anew.
    """
    is_over = threading.Event()
    with Waiting(prefix) as waiting:
        waiting.begin(what)
        watcher = threading.Thread(
            target=_watch, args=(arrival, again, waiting, what, is_over), daemon=True, name="arrival"
        )
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()


def _watch(
    arrival: KeyInStore,
    again: KeyInStore | None,
    waiting: Waiting,
    what: str | Callable[[], str],
    is_over: threading.Event,
) -> None:
    is_waiting = True
    while not is_over.wait(_LOOK_SECONDS if is_waiting else _RARE_LOOK_SECONDS):
        try:
            if is_waiting and arrival.is_there():
                waiting.end()
                arrival.remove()
                if again is None:
                    return
                is_waiting = False
            elif again is not None and again.is_there():
                again.remove()
                waiting.begin(what)
                is_waiting = True
        except (RpcError, RaySystemError):
            # A head that is away for a moment; the run itself says so where it matters.
            continue


def workers_wanted(run: RunConfig) -> str:
    """Which workers a run wants, and what the cluster has free."""
    return room_wanted(run.num_workers, cpus=run.cpus_per_worker, gpus=int(run.use_gpu))
