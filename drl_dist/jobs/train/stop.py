"""Stop requests: a signal to the driver, or notice that a machine will be taken away, reaches all ranks at one step."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Self, TypeVar

from ray.exceptions import RaySystemError, RpcError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists, _internal_kv_put
from ray.train.v2._internal.execution.context import get_train_context

from drl_dist.common.program import Stopped, stop_on_signals
from drl_dist.jobs.common.cluster import in_background
from drl_dist.training.guard import Interrupt

LOOK_SECONDS = 0.5
_NAMESPACE = b"drl_dist"

Result = TypeVar("Result")


class KeyInStore:
    """A flag that all processes of a cluster see, in the store of Ray's head.

    Args:
        kind: first part of its key.
    """

    def __init__(self, kind: str) -> None:
        self.key = f"{kind}/{uuid.uuid4()}"

    def write(self) -> None:
        """Set it.

        Raises:
            ray.exceptions.RpcError, ray.exceptions.RaySystemError: the cluster does not answer.
        """
        _internal_kv_put(self.key, b"1", namespace=_NAMESPACE)

    def is_there(self) -> bool:
        """Whether it is set; errors as `write`."""
        return _internal_kv_exists(self.key, namespace=_NAMESPACE)

    def remove(self) -> None:
        """Leave nothing behind; errors as `write`."""
        _internal_kv_del(self.key, namespace=_NAMESPACE)


class StopFlag(KeyInStore):
    """Asks the workers of one start of a run to stop at their next step; restarted workers find it too."""

    def __init__(self) -> None:
        super().__init__("stop")


def stoppable(work: Callable[[], Result], note: StopFlag) -> tuple[Result, str | None]:
    """The result of work that runs in a thread of its own, while this one waits for signals; and the first signal.

    The first signal is passed on by the note, and the work is expected to end by itself; the second one ends the wait.

    Raises:
        Stopped: there was a second signal, or the cluster does not take the note.
    """
    # Ray Train takes SIGINT for itself where it runs in the main thread.
    outcome = in_background(work)
    try:
        return outcome.result(), None
    except Stopped as stop:
        cause = stop.cause
        # Before it is promised.
        stop_on_signals()
        print(
            f"{cause}: all ranks stop after the step they are in, when its checkpoint is written; a second signal "
            "does not wait for them",
            flush=True,
        )
        try:
            note.write()
        except (RpcError, RaySystemError) as error:
            raise Stopped(cause, f"at once, for the cluster does not answer ({error})") from error
    return outcome.result(), cause


class StopRequests:
    """What this rank wants to happen after the step: asked at each step, so nothing is waited for.

    Args:
        note: read by a thread, on the first rank alone; None on the others.
    """

    def __init__(self, note: StopFlag | None) -> None:
        self._note, self._asked, self._closed = note, threading.Event(), threading.Event()
        self._known: set[str] = set()
        # Of this worker; the public function asks rank 0 over the network.
        self._preemption = get_train_context().preemption_context
        if note is not None:
            threading.Thread(target=self._look, args=(note,), daemon=True, name="stop").start()

    def __call__(self) -> Interrupt:
        if self._asked.is_set():
            return Interrupt.STOP
        info = self._preemption.preemption_info
        going = set(info.preempted_node_ids) - self._known if info is not None else set()
        # Ray restarts what is left when the machine is gone; until then training continues.
        self._known |= going
        return Interrupt.CHECKPOINT if going else Interrupt.NONE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed.set()

    def _look(self, note: StopFlag) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                is_asked = note.is_there()
            except (RpcError, RaySystemError) as error:
                print(f"Ray's head does not say whether to stop ({error}); asked again", flush=True)
                continue
            if is_asked:
                self._asked.set()
                return
