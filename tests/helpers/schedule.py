"""Which tests run in one process, and in which order, when several processes share the suite.

Tests that use the Ray head are one group: one process runs them one after the other, then ends the head, so that there
is one head, one set of shards and one reference run, and no idle head beside the other tests. Any other module is a
group of its own. Groups that take longest begin first, so that short tests fill the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

RAY = "ray"
"""The group of the tests that use the fixture `ray_head`."""

SECONDS: Mapping[str, float] = {
    RAY: 600,
    "test_train_nodes.py": 140,
    "test_long_run_resume.py": 95,
    "test_access.py": 80,
    "test_command.py": 75,
    "test_storage_faults.py": 70,
    "test_energy.py": 60,
    "test_commands.py": 60,
    "test_alerts.py": 50,
    "test_partition.py": 40,
    "test_kernels.py": 35,
    "test_joining.py": 35,
    "test_page.py": 30,
    "test_spool.py": 25,
    "test_long_run_job.py": 25,
    "test_inpainting.py": 25,
    "test_sample_extend.py": 25,
    "test_train_single_device.py": 20,
    "test_long_run.py": 20,
    "test_report_timeout.py": 15,
    "test_outage.py": 10,
}
"""About how long a group takes; others take a few seconds."""


def uses_ray_head(item: pytest.Item | None) -> bool:
    """Whether a test, or one of its fixtures, uses the Ray head of the session."""
    return item is not None and "ray_head" in getattr(item, "fixturenames", ())


def group(item: pytest.Item) -> str:
    """The group that a test belongs to."""
    return RAY if uses_ray_head(item) else Path(item.path).name


def share_out(items: list[pytest.Item]) -> None:
    """Mark each test with its group, and put the longest groups first."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: -SECONDS.get(group(item), 1.0))
