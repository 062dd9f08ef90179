"""Which tests run in one process, and in which order, when several processes share the suite.

Tests that share a costly fixture, such as a finished training run, are one group: one process runs them one after the
other. Groups that take longest begin first, so that short tests fill the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

GROUPS: Mapping[str, str] = {
    # They compare with one run that nothing happens to.
    "test_train.py": "training",
    "test_train_kills.py": "training",
    "test_train_stop.py": "training",
}
"""Modules that share a costly fixture; any other module is a group of its own."""

SECONDS: Mapping[str, float] = {
    "training": 620,
    "test_train_nodes.py": 250,
    "test_sweep_job.py": 230,
    "test_train_damage.py": 110,
    "test_train_rollback.py": 70,
    "test_monitoring.py": 80,
    "test_train_mistakes.py": 150,
    "test_long_run_resume.py": 100,
    "test_report_timeout.py": 55,
    "test_joining.py": 60,
    "test_sample.py": 120,
    "test_sample_extend.py": 30,
    "test_likelihood.py": 60,
    "test_tracker.py": 80,
    "test_access.py": 60,
    "test_outage.py": 40,
    "test_kernels.py": 60,
    "test_long_run.py": 60,
    "test_long_run_job.py": 60,
    "test_worlds.py": 60,
    "test_evaluate.py": 60,
    "test_python.py": 40,
    "test_commands.py": 40,
    "test_during_training.py": 40,
}
"""About how long a group takes; others take a few seconds."""


def group(item: pytest.Item) -> str:
    """The group that a test belongs to."""
    marker = item.get_closest_marker("xdist_group")
    if marker is not None:
        return str(marker.args[0])
    name = Path(item.path).name
    return GROUPS.get(name, name)


def share_out(items: list[pytest.Item]) -> None:
    """Mark each test with its group, and put the longest groups first."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: -SECONDS.get(group(item), 1.0))
