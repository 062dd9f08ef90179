"""What steps of a run cost, kept in its folder: a later start chooses from it how a step fits into memory.

Tracing a step takes seconds of a processor. What is kept is found under digests of all that it depends on, so that
another batch, network or version traces anew (`drl_dist.training.traced_costs`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder

STEP_COSTS = "step_costs.json"


def read_step_costs(run_url: str) -> dict[str, dict[str, int]]:
    """Those kept so far, by digest; none, with a line on stderr, if the file is damaged or the storage does not answer,
    for they can be traced again."""
    folder = Folder(run_url)
    try:
        text = folder.read(STEP_COSTS)
    except FileNotFoundError:
        return {}
    except UserError as error:
        _tell(f"what steps cost is traced again: {error}")
        return {}
    try:
        costs: Any = json.loads(text)["costs"]
        if not all(type(number) is int for cost in costs.values() for number in cost.values()):
            raise TypeError("what is no whole number")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _tell(f"{folder.url_of(STEP_COSTS)} is damaged and will be written again: {error}")
        return {}
    return costs


def write_step_costs(run_url: str, costs: dict[str, dict[str, int]]) -> None:
    """Keep all of them; if the storage does not take the file, which must end no run, that is told on stderr."""
    try:
        Folder(run_url).write(STEP_COSTS, (json.dumps({"costs": costs}, indent=2) + "\n").encode())
    except UserError as error:
        _tell(f"what steps cost is not kept for later starts: {error}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
