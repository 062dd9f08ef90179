"""Jobs in this process: units are made one by one, where a cluster's workers would make them."""

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
    """Units that were made, by any pool."""

    def __init__(self, size: int, *, cpus: int, gpus: int, new_maker: type[Any], arguments: Sequence[Any]) -> None:
        self._maker = new_maker(*arguments)

    def run(self, units: Sequence[int], advance: Advance) -> Iterator[tuple[int, Any]]:
        for unit in units:
            *_, result = self._maker.make(unit)
            OneByOne.made.append(unit)
            yield unit, result

    def close(self) -> None:
        pass


def run_in_process(monkeypatch: pytest.MonkeyPatch, *drivers: ModuleType) -> None:
    """Let the jobs of these drivers need no cluster."""
    monkeypatch.setattr(OneByOne, "made", [], raising=False)
    for driver in drivers:
        monkeypatch.setattr(driver, "WorkerPool", OneByOne)
        monkeypatch.setattr(driver, "cluster", nullcontext)
        monkeypatch.setattr(driver, "check_capacity", lambda *_, **__: None)
