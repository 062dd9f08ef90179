"""Which tests run in one process, and in which order, when several processes share the suite.

Modules whose tests use the session's Ray head form two groups, those that compare with one reference run and the
others: one process runs the tests of a group one after the other, then ends its head, so that shards and reference run
are made once and no idle head stands beside the other tests. Any other module is a group of its own. Groups that take
longest begin first, so that short tests fill the end.

The marker `xdist_group` would say the same, but pytest-xdist 3.8 writes it where pytest 9.2 does not look
(`findings/xdist_groups_are_lost.sh`): hence a scheduler of our own, by the name of the module.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TRAINING, RAY = "training", "ray"
"""The groups of the modules whose tests use the fixture `ray_head`: those that train, most of them beside the run of
the fixture `straight`, and the others."""

HEAD_GROUPS: Mapping[str, str] = {
    "tests/jobs/test_train.py": TRAINING,
    "tests/jobs/test_train_damage.py": TRAINING,
    "tests/jobs/test_train_kills.py": TRAINING,
    "tests/jobs/test_train_mistakes.py": TRAINING,
    "tests/jobs/test_train_rollback.py": TRAINING,
    "tests/jobs/test_train_sharded.py": TRAINING,
    "tests/jobs/test_train_stop.py": TRAINING,
    "tests/cluster/test_monitoring.py": RAY,
    "tests/documents/test_python.py": RAY,
    "tests/jobs/test_joining.py": RAY,
    "tests/jobs/test_likelihood.py": RAY,
    "tests/jobs/test_report_timeout.py": RAY,
    "tests/jobs/test_sample.py": RAY,
    "tests/jobs/test_spares.py": RAY,
    "tests/sweeps/test_sweep_job.py": RAY,
    "tests/tracking/test_access.py": RAY,
}
"""A test that uses the head and is in another module ends the session with an error."""

SECONDS: Mapping[str, float] = {
    RAY: 450,
    TRAINING: 400,
    "tests/jobs/test_train_nodes.py": 140,
    "tests/mcmc/test_long_run_resume.py": 95,
    "tests/serving/test_server.py": 90,
    "tests/toy/test_command.py": 75,
    "tests/data/test_storage_faults.py": 70,
    "tests/method/test_energy.py": 60,
    "tests/documents/test_commands.py": 60,
    "tests/cluster/test_alerts.py": 50,
    "tests/checkpoints/test_storage_faults.py": 40,
    "tests/likelihood/test_partition.py": 40,
    "tests/mcmc/test_kernels.py": 35,
    "tests/serving/test_lost_node.py": 35,
    "tests/tracking/test_page.py": 30,
    "tests/tracking/test_spool.py": 25,
    "tests/mcmc/test_long_run_job.py": 25,
    "tests/sampling/test_inpainting.py": 25,
    "tests/jobs/test_sample_extend.py": 25,
    "tests/jobs/test_train_single_device.py": 20,
    "tests/serving/page/test_films.py": 20,
    "tests/serving/page/test_pictures.py": 20,
    "tests/jobs/test_job_folders.py": 20,
    "tests/mcmc/test_long_run.py": 20,
    "tests/sweeps/test_sweep_record.py": 20,
}
"""About how long a group takes; others take a few seconds."""


def module(nodeid: str) -> str:
    """The path of a test's module."""
    return nodeid.partition("::")[0]


def group(nodeid: str) -> str:
    """The group that a test belongs to."""
    return HEAD_GROUPS.get(module(nodeid), module(nodeid))


def uses_ray_head(item: pytest.Item) -> bool:
    """Whether a test, or one of its fixtures, uses the Ray head of the session."""
    return "ray_head" in getattr(item, "fixturenames", ())


def check(items: list[pytest.Item]) -> None:
    """Return if all tests that use the head are in a module of its groups.

    Raises:
        pytest.UsageError: one is not; processes that share the suite end without saying so.
    """
    if strangers := {module(item.nodeid) for item in items if uses_ray_head(item)} - HEAD_GROUPS.keys():
        raise pytest.UsageError(f"{', '.join(sorted(strangers))} use ray_head: name them in schedule.HEAD_GROUPS")


def order(items: list[pytest.Item]) -> None:
    """Put the longest groups first, the tests of each side by side."""
    items.sort(key=lambda item: (-SECONDS.get(group(item.nodeid), 1.0), group(item.nodeid)))


class GroupScheduling(LoadScopeScheduling):
    """Gives each process whole groups."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        # Their order is that of `order`, not that of their sizes.
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
