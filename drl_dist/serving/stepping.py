"""A sampling procedure that stops wherever it needs the network, so that others can be asked together with it.

Kernels are functions that call the network in the middle. Instead of being held there, which would take a thread for
each chain, they are called again: a call that asks for a gradient which is not known yet ends with the question, and
begins anew with the answer at hand. Nothing that a kernel does before its first gradient costs much, and a kernel is a
pure function of its state and its noise (`drl_dist.mcmc.kernel`), so the result is the same to the last bit. Kernels of
several gradients, the user's own too, ask several times.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from drl_dist.diffusion.recovery import LogDensityAndGrad, RawAtLevel
from drl_dist.sampling.composition import LabelledRawAtLevel
from drl_dist.sampling.procedure import Once, Procedure, Stage

ResultT = TypeVar("ResultT")
Answer = tuple[Tensor, Tensor]
"""Raw outputs (M,) and their image gradients (M, C, H, W)."""


class Question(NamedTuple):
    """What a procedure needs of the network: M images, several for each of its own where energies are added up."""

    level: Tensor
    """(M,) int64."""
    condition: Tensor | None
    """(M, size) labels; None for f(y, t)."""
    y: Tensor
    """(M, C, H, W)."""


class Reached(NamedTuple):
    """A stage of a procedure, and what its level's chain was like."""

    t: int
    x: Tensor
    """(B, C, H, W) x_t."""
    raw: float | None
    """Mean raw output over the images and steps of the level's chain; None where there is no chain."""


def questions(
    procedure: Procedure, view: Callable[[LabelledRawAtLevel], RawAtLevel]
) -> Generator[Question | Reached, Answer | None, None]:
    """A procedure as questions, each to be answered, and stages.

    Args:
        procedure: at its beginning.
        view: the network -> what the procedure sees of it, such as that of one label.
    """
    asked = _Asked()
    raw_at = view(asked.raw_at)
    result: Tensor | None = None
    raws: list[Tensor] = []
    while True:
        try:
            part = procedure.send(result)
        except StopIteration:
            return
        result = None
        if isinstance(part, Stage):
            yield Reached(part.t, part.x, float(torch.stack(raws).mean()) if raws else None)
            raws = []
        elif isinstance(part, Once):
            result = yield from asked.answered(partial(part.compute, raw_at))
        else:
            kernel = part.kernel(asked.heard(raw_at(part.level)))
            state = yield from asked.answered(partial(kernel.init, part.y))
            raws += asked.values
            stop = part.start + part.num_chain_steps
            for numbers in part.noise.steps(part.start, stop, kernel.num_uniforms):
                state, _ = yield from asked.answered(partial(kernel, state, numbers))
                raws += asked.values
            result = state.y


class _Unanswered(Exception):
    """A gradient is needed that is not known yet."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question


class _Asked:
    """The network, as far as it has been asked since one function of it began."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        """What `heard` has heard: (B,) each."""
        self._answers: list[Answer] = []
        self._place = 0

    def raw_at(self, level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad:
        """See `drl_dist.training.chain.GradientEngine.raw_at`."""

        def raw_and_grad(y: Tensor) -> Answer:
            if self._place == len(self._answers):
                raise _Unanswered(Question(level, condition, y))
            self._place += 1
            return self._answers[self._place - 1]

        return raw_and_grad

    def heard(self, raw_and_grad: LogDensityAndGrad) -> LogDensityAndGrad:
        """The same, whose values are kept in `values`."""

        def hearing(y: Tensor) -> Answer:
            value, gradient = raw_and_grad(y)
            self.values.append(value)
            return value, gradient

        return hearing

    def answered(self, function: Callable[[], ResultT]) -> Generator[Question, Any, ResultT]:
        """The result of a function of the network, after the questions that it asks."""
        self._answers = []
        while True:
            self._place, self.values = 0, []
            try:
                return function()
            except _Unanswered as unanswered:
                question = unanswered.question
            self._answers.append((yield question))
