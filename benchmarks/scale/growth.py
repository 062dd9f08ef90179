"""How costs grow with the number of workers: exponents, verdicts, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from drl_dist.common.amounts import short
from drl_dist.common.figures import figure_png, new_figure

SLACK = 0.1
"""Of an exponent, for times that vary."""


@dataclass(frozen=True)
class Cost:
    """Something that workers cost together.

    Args:
        title: what it is.
        unit: of the amounts.
        of: what is counted along the other axis.
        amounts: of all workers together, by their number.
    """

    title: str
    unit: str
    of: str = "worker"
    amounts: dict[int, float] = field(default_factory=dict[int, float])

    @property
    def exponent(self) -> float:
        """Slope of log(amount) against log(number) over the upper half of the numbers, where constants matter least."""
        return _slope(self.amounts)

    @property
    def allowed(self) -> float:
        """The exponent of n log n over the same numbers, with some slack."""
        return _slope({number: number * math.log(number + 1) for number in self.amounts}) + SLACK

    @property
    def is_fine(self) -> bool:
        """Whether it grows no faster than n log n."""
        return self.exponent <= self.allowed


def _slope(amounts: Mapping[int, float]) -> float:
    numbers = sorted(amounts)
    upper = numbers[min(len(numbers) // 2, max(0, len(numbers) - 3)) :]
    points = [(math.log(number), math.log(max(amounts[number], 1e-12))) for number in upper]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def table(costs: Mapping[str, Cost]) -> str:
    """A row for each cost, as Markdown: of all workers, and of each one, at the fewest and at the most of them."""
    lines = ["| cost | numbers | of all | of each | grows as | |", "|---|---|---|---|---|---|"]
    for cost in costs.values():
        few, many = min(cost.amounts), max(cost.amounts)
        alone, together = (short(cost.amounts[number], cost.unit) for number in (few, many))
        each = [short(cost.amounts[number] / number, cost.unit) for number in (few, many)]
        verdict = "" if cost.is_fine else "faster than n log n"
        lines.append(
            f"| {cost.title} | {few} to {many} {cost.of}s | {alone} to {together} | {each[0]} to {each[1]} | "
            f"n^{cost.exponent:.2f} | {verdict} |"
        )
    return "\n".join(lines)


def picture(costs: Mapping[str, Cost], before: Mapping[str, Mapping[int, float]], caption: str) -> bytes:
    """A PNG with a panel for each cost: amounts against numbers, both on logarithmic axes, beside lines of n log n.

    Args:
        costs: as measured.
        before: amounts of an earlier measurement by the same keys, drawn beside them.
        caption: what is shown.
    """
    columns = 4
    rows = math.ceil(len(costs) / columns)
    figure = new_figure(4.2 * columns, 2.9 * rows)
    for at, (key, cost) in enumerate(costs.items()):
        panel = figure.add_subplot(rows, columns, at + 1)
        numbers = sorted(cost.amounts)
        amounts = [cost.amounts[number] for number in numbers]
        panel.loglog(numbers, _n_log_n(numbers, amounts[0]), color="0.7", linestyle="--", label="n log n")
        if key in before:
            earlier = sorted(before[key])
            panel.loglog(earlier, [before[key][number] for number in earlier], "o-", color="C1", label="before")
        panel.loglog(numbers, amounts, "o-", color="C0", label=f"n^{cost.exponent:.2f}")
        panel.set_title(f"{cost.title} [{cost.unit or 'count'}]", fontsize=8, wrap=True)
        panel.set_xlabel(f"{cost.of}s", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.legend(fontsize=8)
    return figure_png(figure, caption)


def _n_log_n(numbers: Sequence[int], first: float) -> list[float]:
    start = numbers[0] * math.log(numbers[0] + 1)
    return [first * number * math.log(number + 1) / start for number in numbers]
