"""The AUROC by which log-densities separate two sets of images."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of a classifier for which high values mean "inside".

    It is the probability that a random value of `inside` exceeds a random one of `outside`, ties counting half: the
    statistic of Mann and Whitney over the number of pairs, counted exactly.

    Args:
        inside: (N,) values that should be high, any dtype.
        outside: (M,) values that should be low.

    Raises:
        ValueError: one of them is empty or holds a NaN.
    """
    if not len(inside) or not len(outside) or bool(inside.isnan().any()) or bool(outside.isnan().any()):
        raise ValueError("an AUROC needs at least one value on either side, and no NaN")
    # Compared in the wider dtype, because rounding only one side could create or remove ties.
    dtype = torch.promote_types(inside.dtype, outside.dtype)
    inside, sorted_outside = inside.to(dtype), outside.to(dtype).sort().values
    below = torch.searchsorted(sorted_outside, inside, right=False)
    not_above = torch.searchsorted(sorted_outside, inside, right=True)
    return int((below + not_above).sum()) / (2 * len(inside) * len(outside))
