"""A server whose replicas are on several nodes goes on when a node is lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.serving_load import parts
from benchmarks.serving_load.server import TITLES, ServeJob
from drl_dist.library.load import load
from drl_dist.localhost import RayHead, processes
from tests.jobs.nodes import RayNode
from tests.support import titled, write_tiny_checkpoint


@pytest.mark.integration
@pytest.mark.faults
def test_a_lost_node_is_a_pause_for_its_visitors_and_the_end_of_no_stream(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", width=8, num_chain_steps=10)
    words = ["--max-batch=4", "--min-replicas=2", "--max-replicas=2"]
    # A replica on each, since each has one CPU.
    with (
        RayHead(num_cpus=1, environment={"OMP_NUM_THREADS": "1"}) as head,
        RayNode(head, tmp_path / "node.log") as node,
        ServeJob(head, checkpoint, tmp_path / "serve.log", words) as server,
    ):
        assert len(titled(node, TITLES["replica"])) == len(titled(head, TITLES["replica"])) == 1
        members = processes.tree(node.pid)
        found = parts.loss(server, load(checkpoint), 24, 50, lambda: processes.end(members, signal.SIGKILL))
        assert (found.compared.lost, found.compared.wrong, found.compared.errors) == (0, 0, [])
        assert found.told >= 1
