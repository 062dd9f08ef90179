"""A step in slices of its batch, for memory: chains of some images at a time, and an update of some pairs at a time.

Chains of different images have nothing to do with each other, and a gradient of a mean is a mean of gradients, so the
numbers are those of the whole batch, up to the rounding of other sums and other shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drl_dist.diffusion.ladder import Pairs
from drl_dist.diffusion.recovery import Levels
from drl_dist.training.objectives import Objective, Outcome, with_labels
from drl_dist.training.sharded import ShardedForward

_EXCHANGING = (DistributedDataParallel, ShardedForward)
"""Wrappers of a forward that exchange its gradients between ranks."""


def slices(count: int, at_once: int | None) -> list[slice]:
    """The fewest slices of `count` that have at most `at_once` each; their sizes differ by at most one, the larger ones
    first. None for all at once.
    """
    number = 1 if at_once is None else max(1, -(-count // at_once))
    sizes = [count // number + (index < count % number) for index in range(number)]
    ends = [sum(sizes[:index]) for index in range(number + 1)]
    return [slice(low, high) for low, high in pairwise(ends)]


def pairs_in(pairs: Pairs, where: slice) -> Pairs:
    """The pairs of a slice; views."""
    if where == slice(0, len(pairs.level)):
        return pairs
    given = {field.name: getattr(pairs, field.name) for field in fields(pairs)}
    return replace(pairs, **{name: value[where] for name, value in given.items() if value is not None})


def draws_in(draws: Tensor, count: int, where: slice) -> Tensor:
    """Those of a slice of `count` pairs.

    Args:
        draws: (r * count, ...): a first draw of every pair, then a second one of every pair, and so on.
        count: of the pairs.
        where: a slice of them.
    """
    return draws if where == slice(0, count) else draws.unflatten(0, (-1, count))[:, where].flatten(0, 1)


def joined_draws(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """What `draws_in` takes apart: `parts` of as many pairs as `sizes` has numbers."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.unflatten(0, (-1, size)) for part, size in zip(parts, sizes, strict=True)], dim=1).flatten(
        0, 1
    )


def backward_in_slices(
    objective: Objective,
    forward: nn.Module,
    pairs: Pairs,
    y_neg: Tensor | None,
    levels: Levels,
    *,
    at_once: int | None,
    factor: float = 1.0,
) -> Outcome:
    """Add the gradient of a batch's loss to those of the parameters, with the activations of one slice at a time.

    Effective weights are computed anew for each slice. Ranks exchange their gradients with the last one.

    Args:
        objective: whose loss it is. One that is no mean over the pairs gets the outputs of all of them together: they
            are computed once more, before the first slice.
        forward: `drl_dist.training.objectives.Forward`, maybe wrapped by DDP or FSDP.
        pairs, y_neg: as of `Objective.outcome`.
        levels: (T,).
        at_once: pairs of a slice at most; None for all.
        factor: on the loss.

    Returns:
        the loss, times the factor, without its gradient, and what is reported.
    """
    count = len(pairs.level)
    parts = slices(count, at_once)
    if len(parts) > 1 and not objective.is_mean:
        return _backward_of_whole(objective, forward, pairs, y_neg, levels, parts, factor)
    losses, reports = list[Tensor](), list[Mapping[str, Tensor]]()
    for where in parts:
        mine, ends = pairs_in(pairs, where), None if y_neg is None else draws_in(y_neg, count, where)
        weight = factor * (len(mine.level) / count)
        with _exchanging(forward, is_last=where is parts[-1]):
            labelled = with_labels(forward, mine.condition)
            loss, reported = objective.outcome(labelled, mine, ends, levels.at(mine.level))
            loss = loss * weight
            loss.backward()
        losses.append(loss.detach())
        reports.append(reported)
    if len(parts) == 1:
        return Outcome(losses[0], reports[0])
    return Outcome(torch.stack(losses).sum(), {name: torch.cat([one[name] for one in reports]) for name in reports[0]})


def _backward_of_whole(
    objective: Objective,
    forward: nn.Module,
    pairs: Pairs,
    y_neg: Tensor | None,
    levels: Levels,
    parts: Sequence[slice],
    factor: float,
) -> Outcome:
    """The same for a loss that is any function of all outputs: first these, slice by slice and without what led to
    them, then the loss's gradient to them, and from there that of the parameters, slice by slice."""
    count, plain = len(pairs.level), forward.module if isinstance(forward, _EXCHANGING) else forward
    asked = list[tuple[Tensor, Tensor, Tensor]]()

    def output(module: nn.Module, y: Tensor, level: Tensor, where: slice) -> Tensor:
        labelled = with_labels(module, pairs_in(pairs, where).condition)
        return labelled(draws_in(y, count, where), draws_in(level, count, where))

    def all_outputs(y: Tensor, level: Tensor) -> Tensor:
        sizes = [where.stop - where.start for where in parts]
        together = joined_draws([output(plain, y, level, where).detach() for where in parts], sizes).requires_grad_()
        asked.append((y, level, together))
        return together

    loss, reported = objective.outcome(all_outputs, pairs, y_neg, levels.at(pairs.level))
    loss = loss * factor
    loss.backward()
    ((y, level, together),) = asked
    slope = together.grad
    assert slope is not None
    for where in parts:
        with _exchanging(forward, is_last=where is parts[-1]):
            output(forward, y, level, where).backward(draws_in(slope, count, where))
    return Outcome(loss.detach(), reported)


def _exchanging(forward: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Where ranks exchange gradients, let them do so in the last of several backwards alone."""
    return nullcontext() if is_last or not isinstance(forward, _EXCHANGING) else forward.no_sync()
