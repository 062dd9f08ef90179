"""Configs back from JSON, strictly: unknown fields and values of another type are refused."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from drl_dist.common.errors import UserError
from drl_dist.config.tree import ENVIRONMENT, Experiment, RunConfig

Config = TypeVar("Config", Experiment, RunConfig)

# A TypeAdapter takes no settings for a bare dataclass, but nested ones inherit those of the tuple around them.
_STRICT = ConfigDict(extra="forbid", strict=True)
_ADAPTERS = {
    Experiment: TypeAdapter(tuple[Experiment], config=_STRICT),
    RunConfig: TypeAdapter(tuple[RunConfig], config=_STRICT),
}


def config_from_dict(kind: type[Config], values: dict[str, Any], *, source: str) -> Config:
    """The inverse of `drl_dist.common.nested.to_dict`.

    Args:
        kind: `Experiment` or `RunConfig`.
        values: nested dictionaries as JSON gives them; absent fields take their defaults.
        source: where the values come from, for the error message.

    Raises:
        UserError: a field that does not exist, lacks, or has a value of another type or outside its range.
    """
    if kind is RunConfig:
        values = _with_words(values)
    try:
        return _ADAPTERS[kind].validate_json(json.dumps([values]))[0]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(name) for name in first["loc"][1:])
        raise UserError(
            f"{source}, field {field}",
            # A number in quotation marks is a text, and must be seen to be one.
            got=repr(first["input"]) if isinstance(first["input"], str) else first["input"],
            expected=first["msg"].removeprefix("Input should be "),
            remedy=f"use a config that this version of {kind.__name__} understands",
        ) from error


def _with_words(values: dict[str, Any]) -> dict[str, Any]:
    """A run's config of version 0.1.0, where null stood for the server that the environment names."""
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and tracking.get("uri", "") is None:
        return values | {"tracking": tracking | {"uri": ENVIRONMENT}}
    return values
