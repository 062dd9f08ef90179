"""Sending the spool to the server."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import requests
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from drl_dist.tracking.registry import register_checkpoint
from drl_dist.tracking.server.client import chunks, client_of, is_final
from drl_dist.tracking.spool import (
    CheckpointRecord,
    ImageRecord,
    MetricsRecord,
    Record,
    ServerAway,
    Spool,
    StatusRecord,
    TagsRecord,
)

log = logging.getLogger(__name__)

METRICS_PER_REQUEST = 1000


class Sender:
    """Sends what a spool holds, in its order.

    What was sent but not yet noted as sent when the process ended is sent again: the server takes equal numbers and
    versions once, and a picture takes the place of the earlier one of its step.

    Args:
        uri: the server.
        run_id: the run that the records belong to.
        spool: open for this process.
    """

    def __init__(self, uri: str, run_id: str, spool: Spool) -> None:
        self._client, self._run_id, self._spool = client_of(uri), run_id, spool

    def send_some(self) -> None:
        """Send up to about a megabyte of records and note them as sent.

        Raises:
            ServerAway: the rest is still pending.
        """
        for records, offset in _groups(self._spool.read()):
            try:
                self._send(records)
            except (MlflowException, requests.RequestException) as error:
                reason = str(error).splitlines()[0]
                if not (isinstance(error, MlflowException) and is_final(error)):
                    raise ServerAway(reason) from error
                log.error(
                    "MLflow refuses %d records of run %s, which are kept in %s/refused.jsonl: %s",
                    len(records),
                    self._run_id,
                    self._spool.folder,
                    reason,
                )
                for record in records:
                    self._spool.refuse(record, reason)
                self._spool.commit(offset)
                continue
            self._spool.commit(offset)
            for record in records:
                self._spool.drop_payload(record)

    def _send(self, records: list[Record]) -> None:
        metrics: list[Metric] = []
        for record in records:
            match record:
                case MetricsRecord():
                    metrics += _metrics(record)
                case ImageRecord():
                    # As files, which keep what the picture says of itself. `log_image` does not, and by key and step
                    # the page's chart of images puts all parameters of the run before the image, and ends before it
                    # begins.
                    with tempfile.TemporaryDirectory(prefix="drl-pictures-") as folder:
                        for name in (picture_path(record.name, record.step), f"{record.name}.png"):
                            place = Path(folder) / name
                            place.parent.mkdir(parents=True, exist_ok=True)
                            shutil.copyfile(self._spool.payload / record.payload, place)
                        self._client.log_artifacts(self._run_id, folder)
                case CheckpointRecord():
                    register_checkpoint(
                        self._client,
                        record.model_name,
                        self._run_id,
                        record.step,
                        self._spool.payload / record.payload,
                        record.metadata,
                    )
                case TagsRecord():
                    self._client.log_batch(self._run_id, tags=[RunTag(*tag) for tag in record.values.items()])
                case StatusRecord("RUNNING"):
                    self._client.update_run(self._run_id, status="RUNNING")
                case StatusRecord():
                    self._client.set_terminated(self._run_id, record.status)
        for part in chunks(metrics, METRICS_PER_REQUEST):
            self._client.log_batch(self._run_id, metrics=part)


def picture_path(name: str, step: int) -> str:
    """Artifact that holds the picture of a step; ``NAME.png`` is the newest."""
    return f"pictures/{name}/step_{step:08d}.png"


def _metrics(record: MetricsRecord) -> list[Metric]:
    # MLflow stores infinity as the largest float, which would flatten every chart; NaN is a gap.
    return [
        Metric(name, value if math.isfinite(value) else math.nan, record.time_ms, record.step)
        for name, value in record.values.items()
    ]


def _groups(records: Iterable[tuple[Record, int]]) -> Iterator[tuple[list[Record], int]]:
    """Records that go out together, with the offset behind them: metrics by the request, all else one by one."""
    gathered: list[Record] = []
    count = last = 0
    for record, offset in records:
        if gathered and (not isinstance(record, MetricsRecord) or count + len(record.values) > METRICS_PER_REQUEST):
            yield gathered, last
            gathered, count = [], 0
        last = offset
        if isinstance(record, MetricsRecord):
            gathered.append(record)
            count += len(record.values)
        else:
            yield [record], offset
    if gathered:
        yield gathered, last
