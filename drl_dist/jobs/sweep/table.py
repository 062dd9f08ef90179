"""The sweep's result as a table: CSV, Parquet, and lines to read."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from drl_dist.jobs.sweep.record import BAD_SCORE, OBJECTIVE, Curve, Outcome, Rescore, Trial

_SHOWN_WIDTH = 28


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial."""

    trial: Trial
    run_name: str
    run_url: str
    run_id: str
    """Its tracked run, empty if there is none."""
    curve: Curve
    outcome: Outcome | None
    """None if it has not ended."""
    rescores: tuple[Rescore, ...] = ()

    @property
    def status(self) -> str:
        """The outcome's, or ``unfinished``."""
        return self.outcome.status if self.outcome else "unfinished"

    @property
    def score(self) -> float | None:
        """The last score, None if there is none, or if the trial diverged."""
        if self.outcome is not None:
            return self.outcome.score if self.outcome.score < BAD_SCORE else None
        return self.curve.points[-1].score if self.curve.points else None

    @property
    def final_score(self) -> float | None:
        """Mean of the final scores over their seeds, None if there are none."""
        found = [one.scores[OBJECTIVE] for one in self.rescores]
        return statistics.fmean(found) if found else None


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Best first: finished trials by their final score and then by their last, then the others by how far they came."""

    def key(row: Row) -> tuple[float, ...]:
        is_finished = row.status == "finished" and row.score is not None
        is_final = is_finished and row.final_score is not None
        score = row.final_score if is_final else row.score
        steps = row.outcome.step if row.outcome else 0
        places = [0 if is_final else 1, 0 if is_finished else 1, 1 if row.status == "diverged" else 0]
        return (*places, 0 if is_finished else -steps, BAD_SCORE if score is None else score, row.trial.number)

    return sorted(rows, key=key)


def best(rows: Sequence[Row]) -> Row | None:
    """The winner: of the trials that made all their steps; None if there is none."""
    first = ranked(rows)[:1]
    return first[0] if first and first[0].status == "finished" and first[0].score is not None else None


def make_table(rows: Sequence[Row]) -> pa.Table:
    """A row per trial, best first; points as columns named like their fields, numbers as numbers, c_t as JSON."""
    rows = ranked(rows)
    names = list(rows[0].trial.values) if rows else []
    columns: dict[str, pa.Array] = {
        "trial": pa.array([row.trial.number for row in rows], pa.int32()),
        "status": pa.array([row.status for row in rows], pa.string()),
        **{name: _column([row.trial.values[name] for row in rows]) for name in names},
        "score": pa.array([row.score for row in rows], pa.float64()),
        "final_score": pa.array([row.final_score for row in rows], pa.float64()),
        "final_score_std": pa.array([_std(row) for row in rows], pa.float64()),
        "final_fid": pa.array([_mean(row, "score/fid") for row in rows], pa.float64()),
        "steps": pa.array([row.outcome.step if row.outcome else None for row in rows], pa.int64()),
        "images_seen": pa.array([row.outcome.images_seen if row.outcome else None for row in rows], pa.int64()),
        "reason": pa.array([row.outcome.reason if row.outcome else "" for row in rows], pa.string()),
        "run_name": pa.array([row.run_name for row in rows], pa.string()),
        "run_url": pa.array([row.run_url for row in rows], pa.string()),
        "mlflow_run": pa.array([row.run_id for row in rows], pa.string()),
    }
    return pa.table(columns)


def as_csv(table: pa.Table) -> bytes:
    """The table as CSV with a header."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()


def as_parquet(table: pa.Table) -> bytes:
    """The table as Parquet."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def as_text(table: pa.Table) -> str:
    """The table as aligned lines, without addresses, empty columns and long reasons."""
    left_out = {"run_url", "mlflow_run", "images_seen"}
    shown = {
        name: [_shown(value) for value in table[name].to_pylist()]
        for name in table.column_names
        if name not in left_out and any(value not in (None, "") for value in table[name].to_pylist())
    }
    widths = {name: max([len(name), *map(len, cells)]) for name, cells in shown.items()}
    lines = ["  ".join(name.ljust(widths[name]) for name in shown)]
    for row in range(table.num_rows):
        lines.append("  ".join(cells[row].ljust(widths[name]) for name, cells in shown.items()))
    return "\n".join(line.rstrip() for line in lines)


def _column(values: Sequence[Any]) -> pa.Array:
    if all(isinstance(value, bool) for value in values):
        return pa.array(values, pa.bool_())
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return pa.array(values, pa.int64())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return pa.array(values, pa.float64())
    return pa.array([value if isinstance(value, str) else json.dumps(value) for value in values], pa.string())


def _mean(row: Row, name: str) -> float | None:
    found = [one.scores[name] for one in row.rescores if name in one.scores]
    return statistics.fmean(found) if found else None


def _std(row: Row) -> float | None:
    found = [one.scores[OBJECTIVE] for one in row.rescores]
    return statistics.stdev(found) if len(found) > 1 else None


def _shown(value: Any) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _SHOWN_WIDTH else text[: _SHOWN_WIDTH - 3] + "..."
