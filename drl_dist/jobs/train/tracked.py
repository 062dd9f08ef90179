"""The MLflow run of a training run, and what its folder says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from drl_dist.checkpoints.run_status import status_recorded
from drl_dist.common.nested import flatten, to_dict
from drl_dist.config.tree import RunConfig
from drl_dist.data.index import ShardIndex


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """Where a run's metrics and pictures are."""

    page: str
    """As a message ends."""
    run_id: str = ""
    """Its MLflow run; empty without a server."""
    access: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """See `drl_dist.jobs.train.task.WorkerTask.access`."""


def untracked(run: RunConfig) -> Tracked:
    """Of a run without a server."""
    return Tracked(page=f"in {run.url}")


def open_tracked(run: RunConfig, index: ShardIndex, parent_tags: Mapping[str, str] | None) -> Tracked:
    """The MLflow run, new or found again, with its parameters and all that its page says.

    Args:
        run: its server is known.
        index: of its data.
        parent_tags: of a run that another job starts; then the server may be away for a while.

    Raises:
        UserError: the server does not answer, or does not take this.
    """
    from drl_dist.tracking.page import DataSet, fill_page
    from drl_dist.tracking.runs import describe_by_picture, open_run
    from drl_dist.tracking.server.address import access
    from drl_dist.tracking.server.client import through_outage

    uri = run.tracking.uri
    params = {**run_params(run), "data_fingerprint": index.fingerprint}
    data = DataSet(
        name=f"{index.name}-{index.split}" if index.split else index.name,
        url=index.url,
        fingerprint=index.fingerprint,
        profile={"images": index.num_samples, "resolution": index.resolution, "channels": index.channels},
    )

    def opened() -> tuple[str, str]:
        found = open_run(uri, run.tracking.experiment, run.run_name, params, parent_tags)
        fill_page(uri, found, data)
        return found, describe_by_picture(uri, found)

    run_id, page = opened() if parent_tags is None else through_outage(uri, opened)
    return Tracked(page=f"at {page}", run_id=run_id, access=access())


def run_params(run: RunConfig) -> dict[str, Any]:
    """The parameters of a training run as MLflow has them: ``train.seed``, without the word experiment."""
    return {name.removeprefix("experiment."): value for name, value in flatten(to_dict(run)).items()}


@contextmanager
def run_status_kept(run: RunConfig, tracked: Tracked, model_name: str) -> Iterator[None]:
    """Tell the run's folder, and the server if there is one, that it runs, and how it ends."""
    if not tracked.run_id:
        with status_recorded(run.url, tracking_uri="", tracking_run="", model_name=""):
            yield
        return
    from drl_dist.tracking.runs import status_kept

    uri = run.tracking.uri
    with (
        status_recorded(run.url, tracking_uri=uri, tracking_run=tracked.run_id, model_name=model_name),
        status_kept(uri, tracked.run_id),
    ):
        yield
