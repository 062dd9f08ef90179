"""Checks that stop a run before it damages itself."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # A driver knows of these errors, and does without torch.
    from torch import Tensor

REMEDY = (
    "continue from an earlier checkpoint with --start-from under another --run-name, with a smaller learning rate, "
    "beta1, step size or --optim.max-grad-norm, or another seed"
)


class Interrupt(IntEnum):
    """What is to happen after a step; the strongest request of any rank counts for all."""

    NONE = 0
    """Training continues."""
    DUE = 1
    """A checkpoint is written, for it is time for one."""
    CHECKPOINT = 2
    """A checkpoint is written, for a machine is about to be taken away."""
    STOP = 3
    """A checkpoint is written, and training ends."""


class DivergedError(RuntimeError):
    """Loss or gradient is not finite; the update was not made.

    Args:
        step: the step that was not made.
        loss, grad_norm: what was found, on this rank.
    """

    def __init__(self, step: int, loss: float, grad_norm: float) -> None:
        self.step, self.loss, self.grad_norm = step, loss, grad_norm
        super().__init__(
            f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}; no update was made, so {REMEDY}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (DivergedError, (self.step, self.loss, self.grad_norm))


def agree(values: Tensor, request: Interrupt) -> tuple[bool, Interrupt]:
    """Whether every number is finite on every rank, and the strongest request of any rank.

    All ranks get the same answer, by one exchange.
    """
    import torch
    from torch.distributed import ReduceOp, all_reduce, is_initialized

    packed = values.new_full((2,), -float(request))
    packed[0] = torch.isfinite(values).all()
    if is_initialized():
        all_reduce(packed, ReduceOp.MIN)
    is_finite, strongest = packed.tolist()
    return bool(is_finite), Interrupt(int(-strongest))
