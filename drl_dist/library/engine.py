"""A network at its averaged weights, and its raw outputs and gradients, which never change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.build import build_network
from drl_dist.common.errors import UserError
from drl_dist.common.progress import Advance
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.recovery import LogDensityAndGrad, RawAtLevel
from drl_dist.energy.network import EnergyNetwork
from drl_dist.sampling.composition import LabelledRawAtLevel
from drl_dist.training.chain import GradientEngine
from drl_dist.training.ema import load_averaged

Weights: TypeAlias = Mapping[str, NDArray[Any]] | Mapping[str, Tensor]
"""Averaged weights by name, on the CPU."""


def averaged_network(experiment: Experiment, ema: Weights, device: torch.device) -> EnergyNetwork:
    """The network at its averaged weights, for sampling."""
    # Copies: arrays from elsewhere, such as Ray's object store, cannot be written to.
    averaged = {
        name: values.detach().clone() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
        for name, values in ema.items()
    }
    # Settled on the CPU, so that every device samples the same network.
    network = load_averaged(build_network(experiment), averaged)
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network


def frozen_engine(
    experiment: Experiment,
    ema: Weights,
    device: torch.device,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    dtype: torch.dtype = torch.float32,
    cuda_graph: bool = True,
) -> GradientEngine:
    """Raw outputs and image gradients of a network whose averaged weights never change.

    Args:
        experiment: the model's.
        ema: averaged weights.
        device: where it computes.
        precision: arithmetic of the network, as `EngineConfig.precision`.
        dtype: of the weights.
        cuda_graph: capture the gradient on CUDA. A graph holds float32 images, and the weights of one set of levels.
    """
    network = averaged_network(experiment, ema, device).to(dtype=dtype)
    return GradientEngine(network, EngineConfig(precision=precision, cuda_graph=cuda_graph), is_frozen=True)


def check_finite(values: Tensor, what: str, *, remedy: str, expected: str = "finite pixels") -> None:
    """Return if everything that a model made is finite.

    Args:
        values: of any shape.
        what: what they are, for the message.
        remedy: what to do if they are not.
        expected: what they should be.

    Raises:
        UserError: some are not.
    """
    if not bool(values.isfinite().all()):
        raise UserError(what, got="values that are not finite", expected=expected, remedy=remedy)


def with_labelled_progress(raw_at_level: LabelledRawAtLevel, advance: Advance) -> LabelledRawAtLevel:
    """The network, which may be given labels, reporting as `with_progress` does."""

    def raw_at(level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad:
        return _reporting(raw_at_level(level, condition), advance)

    return raw_at


def with_progress(raw_at_level: RawAtLevel, advance: Advance) -> RawAtLevel:
    """The network, reporting after each chain step how many images made it."""

    return lambda level: _reporting(raw_at_level(level), advance)


def _reporting(raw: LogDensityAndGrad, advance: Advance) -> LogDensityAndGrad:
    def density(y: Tensor) -> tuple[Tensor, Tensor]:
        result = raw(y)
        advance(len(y))
        return result

    return density


def usable_device(device: torch.device | str) -> torch.device:
    """The device.

    Raises:
        UserError: there is none of this name, or torch cannot use it.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        # Torch without CUDA asserts; other types raise the others.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            "device",
            got=f"{device} ({reason})",
            expected="a device that torch can use, such as cpu or cuda",
            remedy="choose another device",
        ) from error


@contextmanager
def fixed_sums() -> Iterator[None]:
    """Let cuDNN add up in a fixed order, as the jobs do, and leave torch as it was."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before
