"""What has become of a sweep's trials, read from its folder; see `drl_dist.jobs.sweep.record`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from drl_dist.checkpoints.format import parse_json_object
from drl_dist.checkpoints.run_record import RECORD
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.console.runs import SWEEP, view_run
from drl_dist.data.filesystem import Folder

TRIAL, CURVE, OUTCOME = "trial.json", "curve.json", "outcome.json"
SCORE = "score/kid"
# Of a trial that diverged or has none; real ones are far below it.
_NO_SCORE = 1e12
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class TrialView:
    """A trial as it is now."""

    name: str
    state: str
    """How it ended: finished, stopped, diverged or failed; otherwise the state of its run, or ``to begin``."""
    has_ended: bool
    step: int | None
    score: float | None
    """The last one; smaller is better."""


def is_sweep(url: str) -> bool:
    """Whether a folder is a sweep's; errors as `Folder.sizes`."""
    return SWEEP in Folder(url).sizes()


def view_trials(url: str, tracking_uri: str | None) -> list[TrialView]:
    """The trials of a sweep that were proposed so far, in order.

    Raises:
        UserError: the storage does not answer, or a record is damaged.
    """
    folders = [joined(url, name) for name in Folder(url).names() if not name.startswith(".")]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda folder: _trial(folder, tracking_uri), folders)
    return [trial for trial in found if trial is not None]


def sweep_line(url: str, trials: Sequence[TrialView]) -> str:
    """One line about a sweep."""
    ended = sum(trial.has_ended for trial in trials)
    return f"sweep {PurePosixPath(url).name}: {counted(len(trials), 'trial')}, {ended} ended"


def trial_rows(trials: Sequence[TrialView]) -> list[list[str]]:
    """Name, state, step and score of each."""
    return [
        [
            trial.name,
            trial.state,
            "-" if trial.step is None else str(trial.step),
            "-" if trial.score is None else f"{trial.score:.6g}",
        ]
        for trial in trials
    ]


def _trial(url: str, tracking_uri: str | None) -> TrialView | None:
    """A trial; None for a folder that is none's."""
    names = Folder(url).sizes()
    if TRIAL not in names:
        return None
    outcome, curve = _read(url, OUTCOME), _read(url, CURVE)
    points = (curve or {}).get("points") or [{}]
    step, score = points[-1].get("step"), (points[-1].get("scores") or {}).get(SCORE)
    state = "to begin"
    if outcome is not None:
        state, step, score = str(outcome.get("status")), outcome.get("step"), outcome.get("score")
    elif RECORD in names:
        try:
            run = view_run(url, tracking_uri)
        except UserError:
            # `python -m drl_dist list` of the sweep says what is wrong.
            state = "damaged"
        else:
            state, step = run.state, run.step
    is_scored = isinstance(score, int | float) and math.isfinite(score) and score < _NO_SCORE
    return TrialView(
        name=PurePosixPath(url).name,
        state=state,
        has_ended=outcome is not None,
        step=step if isinstance(step, int) else None,
        score=score if is_scored else None,
    )


def _read(url: str, name: str) -> dict[str, Any] | None:
    try:
        return parse_json_object(Folder(url).read(name), source=f"record {joined(url, name)}")
    except FileNotFoundError:
        return None
