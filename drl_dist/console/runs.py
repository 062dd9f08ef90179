"""What a run is doing, read from its folder, and from the MLflow server that tracks it if there is one."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from drl_dist.checkpoints.format import CHECKSUMS, parse_json_object
from drl_dist.checkpoints.rollbacks import Rollback, read_rollbacks
from drl_dist.checkpoints.run_record import RECORD
from drl_dist.checkpoints.run_status import RunStatus, read_status
from drl_dist.checkpoints.storage import StoredCheckpoint, newest_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.data.filesystem import REACH_DEADLINE, Folder, check_reachable, open_filesystem, within
from drl_dist.tracking.files.table import History, histories, read_table
from drl_dist.tracking.metrics import HEALTH_TAG, plain_name
from drl_dist.training.health import Health, is_watched, judge

# Newest logged steps that a rate is the median of.
_RATE_OF = 20
_THREADS = 8
SWEEP = "sweep.json"
"""What a sweep's folder holds in place of an ``experiment.json``; see `drl_dist.jobs.sweep.record`."""
_ENDED = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "running"}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run."""

    url: str
    record: dict[str, Any]
    """Its ``experiment.json``."""
    status: RunStatus | None
    """None for runs of earlier versions."""
    state: str
    """running, stale, killed (seen on its own machine only), finished, failed, stopped or unknown."""
    step: int | None
    """Steps whose numbers are logged, or else those of the newest checkpoint; None before the first."""
    seen_at: float | None
    """When it last logged something, in seconds since 1970."""
    images_per_second: float | None
    step_seconds: float | None
    checkpoint: StoredCheckpoint | None
    checkpoint_at: float | None
    """When its newest checkpoint was complete, in seconds since 1970."""
    rollbacks: list[Rollback]
    health: str
    page: str | None = None
    """Address of its MLflow page."""
    notes: list[str] = field(default_factory=list[str])
    """What could not be found out, and why."""

    @property
    def name(self) -> str:
        """Its name."""
        return PurePosixPath(self.url).name

    @property
    def num_steps(self) -> int:
        """Steps that it is to make."""
        return int(self.record["experiment"]["train"]["num_steps"])

    @property
    def last_sign_at(self) -> float | None:
        """When it last logged something or completed a checkpoint, in seconds since 1970."""
        return max((moment for moment in (self.seen_at, self.checkpoint_at) if moment is not None), default=None)

    @property
    def seconds_left(self) -> float | None:
        """Time that is left of a run that runs, as it went of late."""
        if self.state != "running" or self.step is None or self.step_seconds is None:
            return None
        return (self.num_steps - self.step) * self.step_seconds


@dataclass(frozen=True)
class _Numbers:
    """The part of a run's metrics that a view needs."""

    step: int | None = None
    seen_at: float | None = None
    images_per_second: float | None = None
    step_seconds: float | None = None
    recent_seconds: float | None = None
    """Mean duration of the steps of the last minute; None for runs of earlier versions."""
    interval: float | None = None
    """Seconds between two logged steps."""
    series: Mapping[str, Mapping[int, float | None]] = field(default_factory=dict[str, "dict[int, float | None]"])
    said: str | None = None
    """How the run itself says that it does."""
    status: str | None = None
    page: str | None = None


def read_record(url: str) -> dict[str, Any]:
    """The ``experiment.json`` of a run's folder.

    Raises:
        UserError: the storage does not answer, or the folder is no run's.
    """
    check_reachable(url)
    folder = Folder(url)
    try:
        record = parse_json_object(folder.read(RECORD), source=f"record {folder.url_of(RECORD)}")
        int(record["experiment"]["train"]["num_steps"])
    except FileNotFoundError:
        if SWEEP in folder.sizes():
            raise UserError(
                f"run {url}",
                got="a sweep, whose trials are runs",
                expected="the folder of a run",
                remedy=f"choose one of those that `python -m drl_dist status {url}` shows",
            ) from None
        raise UserError(
            f"run {url}",
            got=f"no {RECORD} there",
            expected="the folder of a run, STORAGE/RUN_NAME",
            remedy="correct the address; `python -m drl_dist list STORAGE` shows the runs of a storage",
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"record {folder.url_of(RECORD)}",
            got=f"no experiment in it ({type(error).__name__}: {error})",
            expected="what training writes",
            remedy="restore it from a copy",
        ) from error
    return record


def view_run(url: str, tracking_uri: str | None = None) -> RunView:
    """A run as it is now.

    Args:
        url: the run's folder.
        tracking_uri: the MLflow server, by default the one that the run's folder names.

    Raises:
        UserError: the storage does not answer, or the folder is no run's.
    """
    record = read_record(url)
    url = url.rstrip("/")
    status, notes = read_status(url), list[str]()
    numbers = _from_files(url)
    if numbers.step is None:
        numbers = _from_server(url, status, tracking_uri, notes)
    newest = newest_checkpoint(url)
    state = status.state if status else _ENDED.get(numbers.status or "", "unknown")
    recent, batch_size = numbers.recent_seconds, record["experiment"]["train"].get("batch_size")
    now = time.time()
    began = status.since if status else None
    alive_at = max((moment for moment in (numbers.seen_at, began) if moment is not None), default=None)
    silent = now - alive_at if alive_at is not None and state == "running" else 0.0
    health = judge(numbers.series, silent_seconds=silent, interval_seconds=numbers.interval)
    if any(condition == "stale" for condition, _ in health.findings):
        state = "stale"
    if status is not None and status.was_killed:
        state = "killed"
    return RunView(
        url=url,
        record=record,
        status=status,
        state=state,
        step=numbers.step if numbers.step is not None else (newest.step if newest else None),
        seen_at=numbers.seen_at,
        images_per_second=batch_size / recent if recent and batch_size else numbers.images_per_second,
        step_seconds=recent or numbers.step_seconds,
        checkpoint=newest,
        checkpoint_at=_modified(newest.url) if newest else None,
        rollbacks=read_rollbacks(url),
        health=_said(health, numbers),
        page=numbers.page,
        notes=notes,
    )


def _said(health: Health, numbers: _Numbers) -> str:
    """The health; of a tracked run what it said itself, since its curves are too long to be fetched each time."""
    if numbers.series:
        return str(health)
    stale = "; ".join(f"{condition}: {reason}" for condition, reason in health.findings)
    return stale or numbers.said or "not known"


def _from_files(url: str) -> _Numbers:
    found = histories(read_table(url, ends_only=True))
    logged = found.get("loss", History())
    if not logged.values:
        return _Numbers()
    steps = sorted(logged.values)
    times = [logged.times[step] for step in steps if step in logged.times]
    gaps = [after - before for before, after in pairwise(times)][-_RATE_OF:]
    return _Numbers(
        step=steps[-1],
        seen_at=max((moment for history in found.values() for moment in history.times.values()), default=None),
        images_per_second=_recent(found.get("images_per_second")),
        step_seconds=_recent(found.get("step_seconds")),
        recent_seconds=next(reversed(list(found.get("recent_step_seconds", History()).finite().values())), None),
        interval=statistics.median(gaps) if gaps else None,
        series={name: history.values for name, history in found.items() if is_watched(name)},
    )


def _from_server(url: str, status: RunStatus | None, tracking_uri: str | None, notes: list[str]) -> _Numbers:
    uri = tracking_uri or (status.tracking_uri if status else "") or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or (status is not None and not status.tracking_run):
        return _Numbers()
    # It takes seconds to import.
    from drl_dist.tracking.tracked_runs import Latest, find_run, look_up

    try:
        run_id = status.tracking_run if status else find_run(uri, PurePosixPath(url).name)
        run = look_up(uri, run_id) if run_id else None
    except UserError as error:
        notes.append(f"its metrics are not at hand: {error}")
        return _Numbers()
    if run is None:
        notes.append(f"the MLflow server {uri} does not know it")
        return _Numbers()
    latest: dict[str, Latest] = {}
    for name, metric in run.latest.items():
        # A run that an earlier version began has the same metric under two names.
        known = latest.get(plain_name(name))
        if known is None or known.time < metric.time:
            latest[plain_name(name)] = metric
    names = ("images_per_second", "step_seconds", "recent_step_seconds", "loss")
    rate, seconds, recent, loss = map(latest.get, names)
    return _Numbers(
        step=loss.step if loss else None,
        seen_at=max((metric.time for metric in latest.values()), default=None),
        images_per_second=rate.value if rate else None,
        step_seconds=seconds.value if seconds else None,
        recent_seconds=recent.value if recent else None,
        interval=seconds.value if seconds else None,
        said=run.tags.get(HEALTH_TAG) or ("healthy" if "health" in latest else None),
        status=run.status,
        page=run.page,
    )


def _recent(history: History | None) -> float | None:
    values = list((history or History()).finite().values())[-_RATE_OF:]
    return statistics.median(values) if values else None


def _modified(checkpoint_url: str) -> float | None:
    """When a checkpoint was complete, in seconds since 1970; None where the storage does not know."""
    filesystem, path = open_filesystem(checkpoint_url)
    try:
        moment = within(REACH_DEADLINE, lambda: filesystem.modified(f"{path}/{CHECKSUMS}"))
    except (FileNotFoundError, NotImplementedError, KeyError, TimeoutError):
        return None
    assert isinstance(moment, datetime)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def folders_of(storage: str) -> tuple[list[str], list[str]]:
    """The folders of the runs and of the sweeps directly below a storage, by name; errors as `read_record`."""
    files = Folder(storage).sizes()
    urls = [joined(storage, name) for name in Folder(storage).names() if name not in files]
    with ThreadPoolExecutor(_THREADS) as threads:
        held = list(threads.map(lambda url: Folder(url).sizes(), urls))
    runs, sweeps = (
        [url for url, names in zip(urls, held, strict=True) if record in names] for record in (RECORD, SWEEP)
    )
    return runs, sweeps


def refuse_no_storage(storage: str) -> None:
    """Return if runs can be below a place.

    Raises:
        UserError: there is no such folder, it is a run's, or the storage does not answer.
    """
    check_reachable(storage)
    names = Folder(storage).names()
    local = Folder(storage).local
    if RECORD in names:
        raise UserError(
            f"storage {storage}",
            got="the folder of a run",
            expected="the folder that runs are in",
            remedy=f"leave out the run's name; `python -m drl_dist status {storage}` shows the run",
        )
    if not names and (local is None or not local.exists()):
        raise UserError(
            f"storage {storage}",
            got="no such folder" if local is not None else "nothing there",
            expected="the folder that runs are in",
            remedy="correct the address",
        )
