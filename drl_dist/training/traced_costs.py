"""Costs of steps by what they depend on, so that what was traced once is not traced again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import MutableMapping
from dataclasses import asdict, fields, replace

import torch

from drl_dist.common.nested import to_dict
from drl_dist.common.version import installed_version
from drl_dist.config.import_paths import import_paths
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.cost import StepCost, step_cost

Costs = MutableMapping[str, dict[str, int]]
"""The fields of a `StepCost` by its `cost_key`, as JSON holds them."""
_OWN = "own "
"""Before the digests of what a later start traces anew."""
_FIELDS = {field.name for field in fields(StepCost)}


def known_step_cost(costs: Costs, experiment: Experiment, *, num_workers: int, engine: EngineConfig) -> StepCost:
    """`drl_dist.training.cost.step_cost`, from `costs` if it is there; what is traced is added to them.

    Raises:
        UserError: as of `step_cost`.
    """
    # A network or a kernel of the user's own, or of timm, may become another one under its name.
    is_own = not experiment.model.is_built_in or bool(import_paths(experiment))
    key = _OWN * is_own + cost_key(experiment, num_workers=num_workers, engine=engine)
    if (found := costs.get(key)) is not None and found.keys() == _FIELDS:
        return StepCost(**found)
    cost = step_cost(experiment, num_workers=num_workers, engine=engine)
    costs[key] = asdict(cost)
    return cost


def worth_keeping(costs: Costs) -> dict[str, dict[str, int]]:
    """The costs that a later start can rely on: those of parts of the user's own hold for one start alone."""
    return {key: cost for key, cost in costs.items() if not key.startswith(_OWN)}


def cost_key(experiment: Experiment, *, num_workers: int, engine: EngineConfig) -> str:
    """A digest of all that a step's cost depends on; arguments as of `drl_dist.training.cost.step_cost`.

    How many steps follow, and how much memory there is, changes no step.
    """
    depends_on = {
        "experiment": to_dict(replace(experiment, train=replace(experiment.train, num_steps=1))),
        "images": math.ceil(experiment.train.batch_size / num_workers),
        "shares": num_workers if engine.shard else 1,
        "engine": to_dict(replace(engine, memory_gib=None)),
        "versions": {"drl_dist": installed_version(), "torch": torch.__version__},
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
