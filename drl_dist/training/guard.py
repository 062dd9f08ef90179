"""What stops a run before it damages itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ReduceOp, all_reduce, is_initialized

REMEDY = (
    "go on from an earlier checkpoint with --start-from under another --run-name, with a smaller learning rate, beta1, "
    "step size or --optim.max-grad-norm, or another seed"
)


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


def all_finite(values: Tensor) -> bool:
    """Whether every number is finite on every rank; all ranks get the same answer."""
    is_finite = torch.isfinite(values).all().to(torch.float32)
    if is_initialized():
        all_reduce(is_finite, ReduceOp.MIN)
    return bool(is_finite)
