"""Both ways of learning at once, each on a thread of a process of its own.

The layers are so small that a second thread does nothing for one of them.
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
    """What each way of learning makes of the same data; the results do not depend on what runs beside it.

    Args:
        experiments: how it is learned, by what that is called.
        name: of the data.
        grid: of the densities.
        lengthen: a long run's chains are this many times as long as those of training.
        on_progress: hears how many chain steps were done, and what else there is to say.

    Raises:
        UserError: a training ran away, or one of the processes was killed. None goes on then.
    """
    context, found = get_context("spawn"), dict[str, Fit]()
    processes: list[SpawnProcess] = []
    ends: dict[Connection, tuple[str, SpawnProcess]] = {}
    try:
        for label, experiment in experiments.items():
            here, there = context.Pipe()
            # Daemons end when this process ends by itself; when it is killed, their next word finds no hearer.
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
                    said = end.recv()
                except (EOFError, OSError) as error:
                    process.join()
                    raise UserError(
                        f"learning by {label}",
                        got=f"a process that ended with exit code {process.exitcode}",
                        expected="it to live until it is done",
                        remedy="see that memory is free and that nothing stops it, and repeat the command",
                    ) from error
                match said:
                    case Fit():
                        found[label] = said
                        end.send(None)
                        del ends[end]
                    case UserError():
                        raise said
                    case items, note:
                        on_progress(items, note)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return {label: found[label] for label in experiments}


def _fit(end: Connection, experiment: Experiment, name: str, label: str, grid: Grid, lengthen: int) -> None:
    """One way of learning, in its own process: says (items, note) on the way, and the `Fit` or the `UserError` last."""
    # An interrupt from the keyboard reaches every process; the first one tells of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    # Where nobody is left to hear it, there is nothing left to do.
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
        # Tensors go through memory that is gone with this process: not before they have arrived.
        end.recv()
