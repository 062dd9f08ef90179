"""Jobs in this process: tasks are made one by one, where a cluster's workers would make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest

from drl_dist.common.progress import Advance


class OneByOne:
    """In the place of `drl_dist.jobs.common.actor_pool.WorkerPool`."""

    made: list[int]
    """Tasks that were made, by any pool."""

    def __init__(self, size: int, *, cpus: int, gpus: int, new_runner: type[Any], arguments: Sequence[Any]) -> None:
        self._runner = new_runner(*arguments)

    def run(self, tasks: Sequence[int], advance: Advance) -> Iterator[tuple[int, Any]]:
        for task in tasks:
            *_, result = self._runner.make(task)
            OneByOne.made.append(task)
            yield task, result

    def close(self) -> None:
        pass


def run_in_process(monkeypatch: pytest.MonkeyPatch, *drivers: ModuleType) -> None:
    """Let the jobs of these drivers need no cluster."""
    monkeypatch.setattr(OneByOne, "made", [], raising=False)
    for driver in drivers:
        monkeypatch.setattr(driver, "WorkerPool", OneByOne)
        monkeypatch.setattr(driver, "cluster", nullcontext)
        monkeypatch.setattr(driver, "check_capacity", lambda *_, **__: None)
