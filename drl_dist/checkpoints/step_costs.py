"""What steps of a run cost, kept in its folder: a later start chooses from it how a step fits into memory.

Tracing a step takes seconds of a processor. What is kept is found under digests of all that it depends on, so that
another batch, network or version traces anew (`drl_dist.training.traced_costs`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from drl_dist.data.filesystem import Folder

STEP_COSTS = "step_costs.json"


def read_step_costs(run_url: str) -> dict[str, dict[str, int]]:
    """Those kept so far, by digest; none, with a line on stderr, if the file is damaged, for they can be traced again.

    Raises:
        UserError: the storage does not answer.
    """
    folder = Folder(run_url)
    try:
        text = folder.read(STEP_COSTS)
    except FileNotFoundError:
        return {}
    try:
        costs: Any = json.loads(text)["costs"]
        if not all(type(number) is int for cost in costs.values() for number in cost.values()):
            raise TypeError("what is no whole number")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{folder.url_of(STEP_COSTS)} is damaged and will be written again: {error}", file=sys.stderr, flush=True)
        return {}
    return costs


def write_step_costs(run_url: str, costs: dict[str, dict[str, int]]) -> None:
    """Keep all of them.

    Raises:
        UserError: the storage does not take the file.
    """
    Folder(run_url).write(STEP_COSTS, (json.dumps({"costs": costs}, indent=2) + "\n").encode())
