"""``python -m drl_dist status`` and ``python -m drl_dist list``: what runs are doing; no Ray is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from drl_dist.common.durations import duration
from drl_dist.common.errors import UserError
from drl_dist.common.validation import refuse_missing
from drl_dist.console.local import local_status
from drl_dist.console.options import ListOptions, StatusOptions
from drl_dist.console.runs import RunView, folders_of, refuse_no_storage, view_run
from drl_dist.console.sweeps import is_sweep, sweep_line, trial_rows, view_trials
from drl_dist.data.filesystem import check_reachable

AT_WORK = ("running", "stale", "killed")
"""States of runs that have not ended by themselves."""
_THREADS = 8


def status(options: StatusOptions) -> int:
    """Say what a run does, a sweep's trials do, or what `up` runs; the exit status: 1 of a run that failed, was killed,
    is stale or ill.

    Raises:
        UserError: the storage does not answer, or the folder is no run's.
    """
    if not options.run:
        return local_status(options)
    check_reachable(options.run)
    if is_sweep(options.run):
        trials = view_trials(options.run, options.tracking_uri)
        print(sweep_line(options.run, trials))
        if trials:
            print(table(["trial", "state", "step", "score"], trial_rows(trials)))
        return 0
    run = view_run(options.run, options.tracking_uri)
    print("\n".join(status_lines(run, time.time())))
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    return int(run.state in ("failed", "stale", "killed") or "diverging" in run.health)


def list_runs(options: ListOptions) -> int:
    """Print a table of a storage's runs, and a line for each of its sweeps; the exit status.

    Raises:
        UserError: there is no such folder, it is a run's, or the storage does not answer.
    """
    refuse_missing({"STORAGE": options.storage})
    refuse_no_storage(options.storage)
    urls, sweeps = folders_of(options.storage)
    for sweep in sweeps:
        line = sweep_line(sweep, view_trials(sweep, options.tracking_uri))
        print(f"{line}; `python -m drl_dist status {sweep}` shows them")
    if not urls and sweeps:
        return 0
    if not urls:
        print(f"no runs in {options.storage}")
        return 0
    if len(urls) > _THREADS:
        print(f"looking at {len(urls)} runs", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(_THREADS) as threads:
        rows = list(threads.map(lambda url: _row(url, options.tracking_uri), urls))
    print(table(["run", "state", "step", "of", "preset", "last sign", "health"], rows))
    return 0


def status_lines(run: RunView, now: float) -> list[str]:
    """What is said of a run.

    Args:
        now: seconds since 1970.
    """
    lines = [f"run {run.name} ({run.record['experiment']['preset']}): {run.state}{_since(run, now)}{_restarts(run)}"]
    if run.step is None:
        lines.append(f"no step of {run.num_steps} is made yet")
    else:
        parts = [f"step {run.step} of {run.num_steps} ({run.step / run.num_steps:.1%})"]
        if run.images_per_second is not None:
            parts.append(f"{run.images_per_second:.1f} images/s")
        if run.seconds_left is not None:
            parts.append(f"{duration(run.seconds_left)} left")
        if run.state in AT_WORK and run.last_sign_at is not None:
            # It may have been killed: then it is said to run until it has been silent for minutes.
            parts.append(f"last sign {_ago(run.last_sign_at, now)}")
        lines.append(", ".join(parts))
    if run.checkpoint is None:
        lines.append("no checkpoint yet")
    else:
        age = "" if run.checkpoint_at is None else f", {duration(max(0.0, now - run.checkpoint_at))} old"
        lines.append(f"newest checkpoint: step {run.checkpoint.step}{age}, {run.checkpoint.url}")
    lines += [
        f"went back from step {one.diverged_at} to step {one.back_to}: {one.reason}" for one in run.rollbacks[-3:]
    ]
    lines.append(f"health: {run.health}")
    if run.page is not None:
        lines.append(f"page: {run.page}")
    return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below a heading, in columns as wide as their longest entry."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    )


def _row(url: str, tracking_uri: str | None) -> list[str]:
    try:
        run = view_run(url, tracking_uri)
    except UserError as error:
        # One damaged run must not hide the others.
        return [url.rpartition("/")[2], "damaged", "", "", "", "", str(error)]
    return [
        run.name,
        run.state,
        "-" if run.step is None else str(run.step),
        str(run.num_steps),
        str(run.record["experiment"]["preset"]),
        _ago(run.last_sign_at, time.time()) or "-",
        run.health.partition(":")[0],
    ]


def _ago(moment: float | None, now: float) -> str:
    return "" if moment is None else f"{duration(max(0.0, now - moment))} ago"


def _since(run: RunView, now: float) -> str:
    if run.status is None:
        return ""
    past = duration(max(0.0, now - run.status.since))
    if run.state == "killed":
        return f" after its start {past} ago"
    return f", for {past}" if run.state in AT_WORK else f" {past} ago"


def _restarts(run: RunView) -> str:
    if run.status is None:
        return ""
    restarts = max(0, run.status.worker_starts - run.status.starts)
    parts = [_count(run.status.starts, "start"), _count(restarts, "restart of its workers", "restarts of its workers")]
    return f" ({', '.join([*parts, _count(len(run.rollbacks), 'roll-back')])})"


def _count(number: int, what: str, plural: str = "") -> str:
    return f"{number} {what if number == 1 else plural or what + 's'}"
