"""Dataclasses of settings, and requests, as nested dictionaries: flattened, and compared field by field."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries, lists and numbers: what it is after a round trip through JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model": {"width": 8}}`` as ``{"model.width": 8}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def completed(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version stored, with the fields that it did not know yet at their defaults."""
    whole = dict(defaults)
    for name, value in stored.items():
        default = defaults.get(name)
        whole[name] = completed(value, default) if isinstance(value, dict) and isinstance(default, dict) else value
    return whole


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``field: old -> new`` for every dotted field in which two config dictionaries differ."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
