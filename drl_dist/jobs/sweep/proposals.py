"""Where the points of a sweep come from: a grid, random numbers, or Optuna.

A proposal is a function of the sweep's seed and the trial's number (and, for Optuna, of the scores reported so far), so
that a sweep that is started again continues where it was.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import TYPE_CHECKING, Any, Literal, Protocol

from drl_dist.common.errors import UserError
from drl_dist.jobs.sweep.space import Choice, Range, Space, Values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Search = Literal["grid", "random", "optuna"]


class Proposer(Protocol):
    """Proposes points, a new trial at a time."""

    def propose(self, number: int) -> Values:
        """The point of a new trial."""
        ...

    def adopt(self, number: int, values: Values) -> None:
        """Take note of a trial that an earlier start proposed."""
        ...

    def tell(self, number: int, score: float) -> None:
        """Take note of a trial's last score; smaller is better."""
        ...


def make_proposer(search: Search, space: Space, seed: int) -> Proposer:
    """The proposer of a name.

    Raises:
        UserError: a grid of ranges, or Optuna is not installed.
    """
    if search == "grid":
        return Grid(space)
    if search == "random":
        return RandomDraws(space, seed)
    return OptunaProposer(space, seed)


def grid_size(space: Space) -> int:
    """Points of the grid.

    Raises:
        UserError: a range has no grid.
    """
    for name, one in space.dimensions.items():
        if isinstance(one, Range):
            raise UserError(
                f"space, field {name}",
                got=f"a range, {one.kind}",
                expected="a list of values, since --search grid tries all of them",
                remedy="list the values or use --search random or optuna",
            )
    return math.prod(len(one.values) for one in space.dimensions.values() if isinstance(one, Choice))


class Grid:
    """Every combination; the last field of the space varies fastest."""

    def __init__(self, space: Space) -> None:
        grid_size(space)
        choices = {name: one.values for name, one in space.dimensions.items() if isinstance(one, Choice)}
        self._points = [dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())]

    def propose(self, number: int) -> Values:
        return self._points[number]

    def adopt(self, number: int, values: Values) -> None:
        pass

    def tell(self, number: int, score: float) -> None:
        pass


class RandomDraws:
    """Independent draws, keyed by seed and number: trial i is the same whatever ran before it."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, number: int) -> Values:
        generator = random.Random(f"{self._seed}/{number}")
        return {name: self._draw(generator, one) for name, one in self._space.dimensions.items()}

    def adopt(self, number: int, values: Values) -> None:
        pass

    def tell(self, number: int, score: float) -> None:
        pass

    @staticmethod
    def _draw(generator: random.Random, one: Choice | Range) -> Any:
        if isinstance(one, Choice):
            return generator.choice(one.values)
        if one.kind == "integer":
            return generator.randint(int(one.low), int(one.high))
        if one.kind == "uniform":
            return _readable(generator.uniform(one.low, one.high), one)
        return _readable(math.exp(generator.uniform(math.log(one.low), math.log(one.high))), one)


class OptunaProposer:
    """Optuna's tree-structured Parzen estimator, given the scores of all trials that have ended."""

    def __init__(self, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                "option --search",
                got="optuna, which is not installed",
                expected="the extra `sweeps`",
                remedy="pip install 'drl_dist[sweeps]', or use --search random",
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        self._study = optuna.create_study(direction="minimize")
        self._distributions = {name: self._distribution(one) for name, one in space.dimensions.items()}
        self._asked: dict[int, Trial] = {}

    def propose(self, number: int) -> Values:
        # A sampler per trial: one seeded once would repeat its first draws after every start of the sweep.
        seed = random.Random(f"{self._seed}/{number}").getrandbits(32)
        # Trials that still run count as bad ones, or several at a time would try the same place.
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        trial = self._asked[number] = self._study.ask(self._distributions)
        return {name: self._decoded(name, trial.params[name]) for name in self._space.dimensions}

    def adopt(self, number: int, values: Values) -> None:
        self._study.enqueue_trial({name: self._encoded(name, value) for name, value in values.items()})
        self._asked[number] = self._study.ask(self._distributions)

    def tell(self, number: int, score: float) -> None:
        self._study.tell(self._asked[number], score)

    def _distribution(self, one: Choice | Range) -> BaseDistribution:
        kinds = self._optuna.distributions
        if isinstance(one, Choice):
            return kinds.CategoricalDistribution([json.dumps(value) for value in one.values])
        if one.kind == "integer":
            return kinds.IntDistribution(int(one.low), int(one.high))
        return kinds.FloatDistribution(one.low, one.high, log=one.kind == "loguniform")

    def _encoded(self, name: str, value: Any) -> Any:
        return json.dumps(value) if isinstance(self._space.dimensions[name], Choice) else value

    def _decoded(self, name: str, value: Any) -> Any:
        one = self._space.dimensions[name]
        if isinstance(one, Choice):
            return json.loads(value)
        return value if one.kind == "integer" else _readable(value, one)


def _readable(value: float, within: Range) -> float:
    """Six digits are enough to repeat a trial by hand."""
    return min(max(float(f"{value:.6g}"), within.low), within.high)
