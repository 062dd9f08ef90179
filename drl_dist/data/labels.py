"""Labels of shards: their names in the index, and those of each sample in its JSON.

A sample has ``"label": 3``, the number of its class, or ``"attributes": [1, -1, 0]``, for each attribute whether it is
true, false or unknown. A sample without either has no label; it is one all the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig, ConditionKind, shown
from drl_dist.config.tree import Experiment
from drl_dist.data.index import ShardIndex
from drl_dist.data.substitutes import DamageError

LABEL, ATTRIBUTES = "label", "attributes"
"""Names in a sample's JSON."""
NO_CLASS = -1
"""In place of the number of a class."""


def names_of(index: ShardIndex, kind: ConditionKind) -> tuple[str, ...]:
    """Names of the classes or attributes of a data set; empty where it has none."""
    return {"none": (), "class": index.classes, "attributes": index.attributes}[kind]


def labelled_by(experiment: Experiment, index: ShardIndex) -> Experiment:
    """The experiment with the names of the data's labels, where its energies know labels.

    Raises:
        UserError: the data have no such labels, or others than those of the experiment.
    """
    condition = experiment.condition
    names = checked_names(condition, names_of(index, condition.kind), f"data {index.url} ({index.name})")
    return dataclasses.replace(experiment, condition=dataclasses.replace(condition, names=names))


def checked_names(condition: ConditionConfig, names: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The names of the data's labels, if energies of this condition can be trained on them.

    Args:
        names: that the data have for labels of this kind.
        what: the data, for messages.

    Raises:
        UserError: they have none, or others.
    """
    if condition.kind == "none":
        return ()
    noun = "classes" if condition.kind == "class" else "attributes"
    if not names:
        raise UserError(
            what,
            got=f"images without {noun}",
            expected=f"{noun} with names, since condition.kind is {condition.kind}",
            remedy="prepare the data again with labels (docs/data.md), or train with --condition.kind none",
        )
    if condition.names and condition.names != names:
        raise UserError(
            what,
            got=f"{counted(len(names), 'name')} of {noun}: {shown(names)}",
            expected=f"the {len(condition.names)} of the model, in their order: {shown(condition.names)}",
            remedy="use data with the same labels, or leave condition.names out for a new model",
        )
    return names


def blank(count: int, kind: ConditionKind, size: int) -> NDArray[Any] | None:
    """Room for the labels of `count` images, as `drl_dist.common.batch.Batch.labels`; None for energies without."""
    if kind == "none":
        return None
    return np.full(count, NO_CLASS, np.int64) if kind == "class" else np.zeros((count, size), np.int8)


def label_in(members: Mapping[str, bytes], kind: ConditionKind, size: int, what: str) -> NDArray[Any]:
    """The label of one sample, a row of what `blank` makes.

    Args:
        members: of the sample, by extension.
        kind, size: of the labels.
        what: the sample, for messages.

    Raises:
        DamageError: its JSON cannot be read, or has a label that is none of the index.
    """
    row = blank(1, kind, size)
    assert row is not None
    name = LABEL if kind == "class" else ATTRIBUTES
    try:
        facts = json.loads(members.get("json", b"{}"))
        if not isinstance(facts, dict):
            raise ValueError(f"a {type(facts).__name__}")
    except (ValueError, RecursionError) as error:
        raise DamageError(
            what, got=f"JSON that cannot be read ({error})", expected="a JSON object", remedy="prepare the data again"
        ) from error
    value = facts.get(name)
    if value is None:
        return row[0]
    if kind == "class":
        holds = type(value) is int and 0 <= value < size
        expected = f"a number below {size}, the number of classes"
    else:
        holds = isinstance(value, list) and len(value) == size and all(type(v) is int and -1 <= v <= 1 for v in value)
        expected = f"{size} numbers, each 1, -1 or 0"
    if not holds:
        raise DamageError(what, got=f"{name} {str(value)[:60]}", expected=expected, remedy="prepare the data again")
    row[0] = value
    return row[0]
