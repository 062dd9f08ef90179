"""Reports of a trial, beside Ray's session, which takes them one by one."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from drl_dist.jobs.sweep.trial import Reports, as_report


def test_a_trial_waits_until_its_last_report_is_done_with() -> None:
    reports = Reports.__new__(Reports)
    waiting: queue.Queue[dict[str, Any]] = queue.Queue(1)
    reports._training_actor_item_queue = waiting
    done: list[int] = []

    def session() -> None:
        while len(done) < 2:
            # As Ray does: an item leaves the queue before it is handed on, and an empty one is skipped.
            if item := waiting.get():
                time.sleep(0.3)
                done.append(item["step"])
        waiting.get()

    thread = threading.Thread(target=session)
    thread.start()
    for step in (1, 2):
        reports.put(as_report(step, 8 * step, 0.5, is_last=step == 2))
    reports.wait_until_taken()
    assert done == [1, 2]
    thread.join()
