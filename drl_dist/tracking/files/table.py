"""The metrics of a run as Parquet files in its folder: one row for each number of each step.

A segment ``metrics/steps_NNNNNNNNN.parquet`` holds the rows from its first step, which names it, to a checkpoint. The
newest one is written again as it grows; those before it stay as they are. Columns: step (int64), time (UTC), name, and
value (float64), null for a number that is not finite.
"""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder

TABLE = "metrics"
"""Folder of the segments in the run's folder."""
EARLIER = "metrics.jsonl"
"""Where version 0.1.0's successors without Ray kept metrics: an object a line; taken over by the next start."""
SCHEMA = pa.schema(
    [("step", pa.int64()), ("time", pa.timestamp("ms", "UTC")), ("name", pa.string()), ("value", pa.float64())]
)
_SEGMENT = re.compile(r"steps_(\d{9,})\.parquet")
# What a killed write leaves of one.
_PART = re.compile(r"\.(steps_\d{9,}\.parquet)\.[0-9a-f]{8}\.part")

Row = tuple[int, int | None, str, float | None]
"""Step, time in milliseconds since 1970 (None if not known), name, value (None if not finite)."""


@dataclass(frozen=True)
class History:
    """One metric of a run by step; of a step logged twice, the newest number."""

    values: dict[int, float | None] = field(default_factory=dict[int, "float | None"])
    times: dict[int, float] = field(default_factory=dict[int, float])
    """When each was logged, in seconds since 1970, where that is known."""

    def finite(self) -> dict[int, float]:
        """The finite values by step."""
        return {step: value for step, value in self.values.items() if value is not None}


def read_table(run_url: str, names: Collection[str] | None = None, *, ends_only: bool = False) -> pa.Table:
    """The metrics of a run, as `SCHEMA` has them, in the order in which they were logged; empty if there are none.

    Args:
        run_url: the run's folder.
        names: metrics that are wanted; all if None.
        ends_only: read only the first and the two newest segments, which say how a run began and how it does.

    Raises:
        UserError: the storage does not answer, or a segment is damaged.
    """
    folder = Folder(joined(run_url, TABLE))
    segments = _segments(folder)
    if ends_only:
        segments = [*segments[:1], *segments[1:][-2:]]
    table = pa.concat_tables([_table(_earlier_rows(run_url)), *(_read(folder, name) for name in segments)])
    if names is None:
        return table
    return table.filter(pa.array([name in names for name in table["name"].to_pylist()], pa.bool_()))


def histories(table: pa.Table) -> dict[str, History]:
    """What `read_table` gives, by metric."""
    found: dict[str, History] = {}
    times = table["time"].cast(pa.int64()).to_pylist()
    rows = zip(table["step"].to_pylist(), times, table["name"].to_pylist(), table["value"].to_pylist(), strict=True)
    for step, moment, name, value in rows:
        history = found.setdefault(name, History())
        history.values[step] = value
        if moment is not None:
            history.times[step] = moment / 1000
    return found


class MetricsTable:
    """Writes the metrics of a run.

    Args:
        run_url: the run's folder; made if need be.
        step: steps made, with which the run continues: rows of later ones, which will be made again, are removed.

    Raises:
        UserError: the storage does not answer, or what is there is damaged.
    """

    def __init__(self, run_url: str, step: int) -> None:
        self._run_url, self._folder = run_url, Folder(joined(run_url, TABLE))
        self._rows: list[Row] = []
        self._open: str | None = None
        self._take_up(step)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a step; they are written by `write`."""
        now = math.floor(time.time() * 1000)
        self._rows += [
            (step, now, name, float(value) if math.isfinite(value) else None) for name, value in numbers.items()
        ]

    def write(self, *, is_sealed: bool) -> None:
        """Write what was added.

        Args:
            is_sealed: whether the next step begins another segment.

        Raises:
            UserError: the storage does not take it; what was added is written with the next call.
        """
        # Another thread may add rows meanwhile.
        rows = self._rows[:]
        if not rows:
            return
        name = self._open or _segment(rows[0][0])
        buffer = io.BytesIO()
        pq.write_table(_table(rows), buffer, compression="zstd")
        self._folder.write(name, buffer.getvalue())
        self._open = name
        # A segment of one step stays open: a later number of that step would begin one of the same name.
        if is_sealed and rows[-1][0] > rows[0][0]:
            del self._rows[: len(rows)]
            self._open = None

    def _take_up(self, step: int) -> None:
        """Continue the newest segment, without what lies after the step."""
        self._folder.remove_parts([match[1] for name in self._folder.sizes() if (match := _PART.fullmatch(name))])
        earlier = [row for row in _earlier_rows(self._run_url) if row[0] <= step]
        names = _segments(self._folder)
        for name in names:
            if _first_step(name) > step:
                self._folder.remove(name)
        kept = [name for name in names if _first_step(name) <= step]
        if kept:
            self._open = kept[-1]
            self._rows = [row for row in _rows_of(_read(self._folder, self._open)) if row[0] <= step]
        elif earlier:
            self._rows = earlier
        if self._rows:
            self.write(is_sealed=False)
        # Only now are its numbers elsewhere.
        Folder(self._run_url).remove(EARLIER)


def _segments(folder: Folder) -> list[str]:
    return sorted((name for name in folder.sizes() if _SEGMENT.fullmatch(name)), key=_first_step)


def _segment(first_step: int) -> str:
    return f"steps_{first_step:09d}.parquet"


def _first_step(name: str) -> int:
    match = _SEGMENT.fullmatch(name)
    assert match is not None, name
    return int(match[1])


def _table(rows: list[Row]) -> pa.Table:
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[], [], [], []]
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _rows_of(table: pa.Table) -> list[Row]:
    times = table["time"].cast(pa.int64()).to_pylist()
    return list(
        zip(table["step"].to_pylist(), times, table["name"].to_pylist(), table["value"].to_pylist(), strict=True)
    )


def _read(folder: Folder, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(folder.read(name))).cast(SCHEMA)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(
            f"metrics {folder.url_of(name)}",
            got=" ".join(str(error).split())[:200],
            expected="a Parquet file of this run's metrics",
            remedy="restore the file from a copy, or move it elsewhere",
        ) from error


def _earlier_rows(run_url: str) -> list[Row]:
    """Rows of a run whose metrics are lines of JSON; a last line that was cut short is left out."""
    folder = Folder(run_url)
    try:
        text = folder.read(EARLIER).decode(errors="replace")
    except FileNotFoundError:
        return []
    whole, _, _ = text.rpartition("\n")
    rows: list[Row] = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            numbers = json.loads(line)
        except ValueError:
            numbers = None
        if not isinstance(numbers, dict) or type(numbers.get("step")) is not int:
            raise UserError(
                f"metrics {folder.url_of(EARLIER)}",
                got=f"line {number} without a step",
                expected="the metrics of this run",
                remedy="restore the file from a copy, or move it elsewhere",
            )
        step = numbers.pop("step")
        rows += [(step, None, name, value) for name, value in numbers.items()]
    return rows
