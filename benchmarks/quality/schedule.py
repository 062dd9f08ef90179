"""How many steps a budget of arithmetic pays for, and which phase each of them belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from drl_dist.config.tree import Experiment


@dataclass(frozen=True)
class Stage:
    """The steps of one phase."""

    experiment: Experiment
    """With the number of steps of the whole training."""
    first_step: int
    num_steps: int
    flop_per_step: float


@dataclass(frozen=True)
class Schedule:
    """All steps of a training."""

    stages: tuple[Stage, ...]

    @classmethod
    def within(
        cls, budget: float, experiments: Sequence[Experiment], shares: Sequence[float], flop_per_image: Sequence[float]
    ) -> Schedule:
        """As many steps as a budget pays for; at least one in each phase.

        Args:
            budget: floating-point operations.
            experiments, shares, flop_per_image: of each phase: its share of the budget, and the operations of a step
                for one image.
        """
        costs = [flop * one.train.batch_size for flop, one in zip(flop_per_image, experiments, strict=True)]
        counts = [max(1, round(budget * share / cost)) for share, cost in zip(shares, costs, strict=True)]
        stages: list[Stage] = []
        for index, (experiment, count, cost) in enumerate(zip(experiments, counts, costs, strict=True)):
            train = dataclasses.replace(experiment.train, num_steps=sum(counts))
            stages.append(Stage(dataclasses.replace(experiment, train=train), sum(counts[:index]), count, cost))
        return cls(tuple(stages))

    @property
    def num_steps(self) -> int:
        """Of all phases."""
        return sum(stage.num_steps for stage in self.stages)

    def stage_of(self, step: int) -> Stage:
        """The phase that the step behind `step` steps belongs to; after the last step, the last one."""
        return [stage for stage in self.stages if stage.first_step <= step][-1]

    def flop_after(self, step: int) -> float:
        """Operations of the first `step` steps."""
        return sum(stage.flop_per_step * min(max(0, step - stage.first_step), stage.num_steps) for stage in self.stages)

    def step_at(self, share: float) -> int:
        """Number of steps after which this share of all operations is made, to the nearest step; at least 1."""
        wanted = share * self.flop_after(self.num_steps)
        for stage in self.stages:
            before = self.flop_after(stage.first_step)
            steps = round((wanted - before) / stage.flop_per_step)
            if steps <= stage.num_steps:
                return max(1, stage.first_step + max(0, steps))
        return self.num_steps
