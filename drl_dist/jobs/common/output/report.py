"""Reports as JSON and tables as text: what jobs write at their end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Column = tuple[str, int, str]
"""Title, width in characters, and the format of a row's field, such as ``{log_z:.3f}``."""


def report_bytes(content: Mapping[str, Any]) -> bytes:
    """A report as JSON text; numbers that JSON does not have, NaN and infinity, become null."""
    return (json.dumps(finite(content), indent=2, allow_nan=False) + "\n").encode()


def finite(value: Any) -> Any:
    """The same dictionaries and lists with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rows as aligned lines of text below a line of titles; a field that is absent, None or NaN is a dash."""
    lines = ["  ".join(f"{title:>{width}}" for title, width, _ in columns)]
    return lines + ["  ".join(f"{_cell(form, row):>{width}}" for _, width, form in columns) for row in rows]


def _cell(form: str, row: Mapping[str, Any]) -> str:
    name = form[1:].partition(":")[0].partition("}")[0]
    value = row.get(name)
    is_unknown = value is None or (isinstance(value, float) and math.isnan(value))
    return "-" if is_unknown else form.format(**{name: value})
