"""Records of runs and sweeps that were begun before presets chose some field.

The default of such a field in `drl_dist.config.tree` is what was computed before it existed; presets choose otherwise.
A run whose record lacks the field continues as it began, and its record stays without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from drl_dist.checkpoints.format import parse_json_object
from drl_dist.config.presets import NEWER_FIELDS
from drl_dist.config.tree import Experiment
from drl_dist.data.filesystem import Folder


def lacking(url: str, name: str) -> tuple[str, ...]:
    """The newer fields that the experiment in a folder's record does not have; none if there is no record.

    Args:
        url: the folder.
        name: of the record, a JSON object.

    Raises:
        UserError: the record is damaged.
    """
    try:
        text = Folder(url).read(name)
    except FileNotFoundError:
        return ()
    stored = parse_json_object(text, source=f"record {url}/{name}").get("experiment", {})
    return tuple(name for name in NEWER_FIELDS if _field(name) not in stored.get(_section(name), {}))


def as_begun(experiment: Experiment, names: Collection[str], what: str) -> Experiment:
    """The experiment with these fields as they were before they existed.

    Args:
        names: dotted names of newer fields.
        what: is continued, for the line that says which fields of the command's defaults do not count.
    """
    before = Experiment(preset="")
    for name in names:
        section = getattr(experiment, _section(name))
        old = getattr(getattr(before, _section(name)), _field(name))
        if getattr(section, _field(name)) != old:
            print(f"{what} was begun before {name} could be chosen, and continues with {old}", flush=True)
            section = dataclasses.replace(section, **{_field(name): old})
            experiment = dataclasses.replace(experiment, **{_section(name): section})
    return experiment


def without(record: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """An experiment's nested dictionaries without these fields."""
    return {
        section: {field: one for field, one in value.items() if f"{section}.{field}" not in names}
        if isinstance(value, dict)
        else value
        for section, value in record.items()
    }


def _section(name: str) -> str:
    return name.partition(".")[0]


def _field(name: str) -> str:
    return name.partition(".")[2]
