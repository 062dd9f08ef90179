"""Settings as people write them, in JSON or YAML: plain values, and what is wrong with a text that holds none."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_BYTES = 2**20
"""Size of a file of settings; one that is larger is something else."""
_MAX_VALUES = 100_000
# Python writes no number of 4300 digits or more, and no field has a use for one of thirty.
_BOUND = 10**30


class SettingsTextError(ValueError):
    """A text that holds no settings; the message says what was found."""


def from_json(text: str) -> Any:
    """Values of a JSON text.

    Raises:
        SettingsTextError: it is no JSON, a number in it is not finite, or an object names a key twice.
    """
    try:
        return _checked(json.loads(text, object_pairs_hook=_object))
    except (ValueError, RecursionError) as error:
        raise SettingsTextError(
            f"no JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)
        ) from error


def from_file(data: bytes) -> Any:
    """Values of a JSON or a YAML 1.2 file: ``1e-5`` is a number in both, tabs may indent JSON, ``no`` is a word.

    Raises:
        SettingsTextError: it is neither, is too large, holds a key twice, or what JSON does not know: dates, sets, keys
            that are no text, numbers that are not finite.
    """
    if len(data) > MAX_BYTES:
        raise SettingsTextError(f"{len(data):,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsTextError(f"no UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        # Nearly all JSON is YAML, but not all: surrogate pairs, long keys, a colon on the next line, NaN.
        return _checked(json.loads(text, object_pairs_hook=_object))
    except json.JSONDecodeError:
        pass
    except (ValueError, RecursionError) as error:
        raise SettingsTextError(" ".join(str(error).split())[:200]) from error
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        # The safe loader makes plain values only.
        return _checked(YAML(typ="safe", pure=True).load(text))
    except MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise SettingsTextError(where + str(error.problem or error.context).partition(" with value ")[0]) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise SettingsTextError(" ".join(str(error).split())[:200]) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise SettingsTextError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _checked(whole: Any) -> Any:
    """The same values; a walk, since aliases of YAML can make a small file an endless or enormous tree."""
    waiting, count = [whole], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > _MAX_VALUES:
            raise SettingsTextError(f"more than {_MAX_VALUES:,} values")
        if isinstance(value, dict):
            if other := [key for key in value if not isinstance(key, str)]:
                raise SettingsTextError(f"the key {other[0]!r}, which is no text")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, float) and not math.isfinite(value):
            raise SettingsTextError(f"the number {value}, which is not finite")
        elif isinstance(value, int) and abs(value) >= _BOUND:
            raise SettingsTextError("a whole number of more than thirty digits")
        elif value is not None and not isinstance(value, str | bool | int | float):
            raise SettingsTextError(f"a {type(value).__name__} ({value}), which JSON does not know")
    return whole
