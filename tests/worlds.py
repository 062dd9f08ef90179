"""Ranks of one gloo world, each a process of its own."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, multiprocessing


def run_world(program: Callable[..., None], world_size: int, *arguments: Any, backend: str = "gloo") -> None:
    """Run ``program(rank, world_size, *arguments)`` in every process of a new world; raises if one of them fails.

    With the backend ``"cuda:gloo"`` the world can exchange nothing that lies on a CPU, as one of NCCL.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_one_rank, args=(world_size, port, backend, program, arguments), nprocs=world_size)


def _one_rank(
    rank: int,
    world_size: int,
    port: int,
    backend: str,
    program: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    program(rank, world_size, *arguments)
    distributed.destroy_process_group()
    # gloo's threads outlive the group. One that lets go of its last tensor while the interpreter ends aborts the
    # process (pytorch/pytorch issue 190489), so the interpreter does not end: the process does.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
