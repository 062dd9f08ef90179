"""Fitting with both methods at once, each in a process of its own with one thread.

The layers are so small that one fit would not gain from a second thread.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from drl_dist.common.errors import UserError
from drl_dist.config.tree import Experiment
from drl_dist.toy.density import Grid
from drl_dist.toy.distributions import distribution
from drl_dist.toy.study import Fit, OnProgress, fit


def fit_all(
    experiments: dict[str, Experiment], name: str, grid: Grid, *, lengthen: int, on_progress: OnProgress
) -> dict[str, Fit]:
    """Fit the same data with every method at once; the results are those of separate fits.

    Args:
        experiments: experiment of each method, by the method's name.
        name: name of the data.
        grid: grid of the densities.
        lengthen: factor by which chains of long runs are longer than those of training.
        on_progress: called with the number of further chain steps done, and a note.

    Raises:
        UserError: a training diverged, or one of the processes was killed. The others are stopped then.
    """
    context, found = get_context("spawn"), dict[str, Fit]()
    processes: list[SpawnProcess] = []
    ends: dict[Connection, tuple[str, SpawnProcess]] = {}
    try:
        for label, experiment in experiments.items():
            here, there = context.Pipe()
            # Daemons end when this process exits; if it is killed, their next message fails.
            process = context.Process(target=_fit, args=(there, experiment, name, label, grid, lengthen), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            ends[here] = label, process
        while ends:
            for end in wait(list(ends)):
                assert isinstance(end, Connection)
                label, process = ends[end]
                try:
                    message = end.recv()
                except (EOFError, OSError) as error:
                    process.join()
                    raise UserError(
                        f"learning by {label}",
                        got=f"a process that ended with exit code {process.exitcode}",
                        expected="it to run until it is done",
                        remedy="check that enough memory is free and that nothing stops it, and repeat the command",
                    ) from error
                match message:
                    case Fit():
                        found[label] = message
                        end.send(None)
                        del ends[end]
                    case UserError():
                        raise message
                    case items, note:
                        on_progress(items, note)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return {label: found[label] for label in experiments}


def _fit(end: Connection, experiment: Experiment, name: str, label: str, grid: Grid, lengthen: int) -> None:
    """Fit with one method in this process: send (items, note) as progress, then the `Fit` or a `UserError`."""
    # Ctrl-C reaches every process; only the parent reports it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    # If the parent has ended, there is nothing left to do.
    with suppress(BrokenPipeError, EOFError):
        try:
            result: Fit | UserError = fit(
                distribution(name),
                experiment,
                label,
                grid,
                lengthen=lengthen,
                on_progress=lambda items, note: end.send((items, note)),
            )
        except UserError as error:
            result = error
        end.send(result)
        # Tensors are sent through shared memory of this process, so wait until the parent has received them.
        end.recv()
