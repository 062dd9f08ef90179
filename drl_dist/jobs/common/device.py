"""The device of a process, its number of threads, and reproducible convolutions."""

from __future__ import annotations

import torch

from drl_dist.common.errors import UserError


def prepare_device(
    device: torch.device | str, *, threads: int | None = None, is_reproducible: bool = True
) -> torch.device:
    """Set torch up for work on one device; every job calls this before it loads a network.

    Args:
        device: ``"cpu"``, ``"cuda"``, or the device that Ray gave this process.
        threads: CPU threads; None leaves the number that torch has chosen.
        is_reproducible: let cuDNN use only convolutions that add up in a fixed order, so that the same work gives the
            same bits on the same kind of device. Jobs whose results are compared by checksum or resume from records
            need that. Training does not ask for it: on a GPU it takes the fastest convolutions, and promises equal
            bits on CPUs alone.

    Returns:
        the device.

    Raises:
        UserError: a GPU is asked for, and torch can use none.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "option --use-gpu", got="no GPU", expected="a GPU that torch can use", remedy="leave the option out"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = is_reproducible
    return device


def device_name(use_gpu: bool) -> str:
    """The device that ``--use-gpu`` chooses, as torch and the requests of output folders write it."""
    return "cuda" if use_gpu else "cpu"
