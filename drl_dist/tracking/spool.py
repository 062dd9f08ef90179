"""An append-only log on local disk of what is still to be sent to the server.

Layout of the folder: ``records.jsonl``, one record a line; ``sent.json``, the byte up to which they were sent;
``payload/``, files that records name; ``run.json``, where to send them; ``refused.jsonl``, what the server would not
take; ``lock``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drl_dist.common.errors import UserError

_PAYLOAD = re.compile(r"[0-9a-f]{32}(\.[a-z]+)?")
# Once everything was sent and the log is longer than this, it starts from scratch.
RESTART_BYTES = 16 * 2**20


@dataclass(frozen=True)
class MetricsRecord:
    """Numbers of one step."""

    step: int
    time_ms: int
    values: dict[str, float]


@dataclass(frozen=True)
class ImageRecord:
    """A PNG file in ``payload/``."""

    name: str
    step: int
    time_ms: int
    payload: str


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint folder in ``payload/`` that becomes a model version."""

    model_name: str
    step: int
    payload: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class StatusRecord:
    """The run's status from here on."""

    status: str


@dataclass(frozen=True)
class TagsRecord:
    """Tags of the run."""

    values: dict[str, str]


Record = MetricsRecord | ImageRecord | CheckpointRecord | StatusRecord | TagsRecord
_KINDS: dict[str, type[Record]] = {
    "metrics": MetricsRecord,
    "image": ImageRecord,
    "checkpoint": CheckpointRecord,
    "status": StatusRecord,
    "tags": TagsRecord,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class ServerAway(RuntimeError):
    """The server did not take what was sent; it may later."""


class Spool:
    """The log, open for one process at a time; its methods may be called from several threads.

    Args:
        folder: made if there is none; what an earlier process left unsent in it is pending.
        lock_seconds: how long to wait for an earlier process that is just ending.

    Raises:
        UserError: another process has it open.
    """

    def __init__(self, folder: Path, *, lock_seconds: float = 15) -> None:
        self.folder = folder
        self.num_refused = 0
        """Records that were refused since it was opened."""
        self.payload = folder / "payload"
        self.payload.mkdir(parents=True, exist_ok=True)
        self._lock_file = (folder / "lock").open("a")
        self._take_lock(lock_seconds)
        self._guard = threading.Lock()
        self._sent_path = folder / "sent.json"
        self._log = (folder / "records.jsonl").open("a+b", buffering=0)
        self._drop_torn_line()
        self._end = self._synced = self._log.seek(0, os.SEEK_END)
        self._sent = self._read_sent()
        if self._sent > self._end:  # ended between the two moves of a restart of the log
            self._sent = 0

    @property
    def unsent_bytes(self) -> int:
        """Bytes of records that were not sent."""
        with self._guard:
            return self._end - self._sent

    def append(self, record: Record) -> None:
        """Add a record. It survives the end of this process at once, and that of the machine after `sync`."""
        line = json.dumps({"kind": _NAMES[type(record)], **asdict(record)}, separators=(",", ":")).encode() + b"\n"
        with self._guard:
            self._log.write(line)
            self._end += len(line)

    def sync(self) -> None:
        """Force what was appended to disk."""
        if self._synced != self._end:
            self._synced = self._end
            os.fsync(self._log.fileno())

    def read(self, max_bytes: int = 2**20) -> list[tuple[Record, int]]:
        """Unsent records from the oldest on, each with the offset to `commit` once it was sent."""
        with self._guard:
            start, end = self._sent, self._end
        position = start
        found: list[tuple[Record, int]] = []
        with (self.folder / "records.jsonl").open("rb") as log:
            log.seek(position)
            while position < min(end, start + max_bytes):
                line = log.readline()
                position += len(line)
                found.append((_record(json.loads(line)), position))
        return found

    def commit(self, offset: int) -> None:
        """Note that everything before `offset` was sent."""
        with self._guard:
            if offset == self._end and self._end > RESTART_BYTES:
                self._log.truncate(0)
                self._end = self._synced = offset = 0
            self._sent = offset
            draft = self._sent_path.with_suffix(".draft")
            draft.write_text(json.dumps({"offset": offset}))
            draft.replace(self._sent_path)

    def refuse(self, record: Record, reason: str) -> None:
        """Keep a record that the server will never take, with the reason."""
        self.num_refused += 1
        with (self.folder / "refused.jsonl").open("a") as refused:
            refused.write(json.dumps({"reason": reason, "kind": _NAMES[type(record)], **asdict(record)}) + "\n")

    def new_payload(self, suffix: str = "") -> Path:
        """A path in ``payload/`` that nobody has."""
        return self.payload / f"{uuid.uuid4().hex}{suffix}"

    def keep_files(self, folder: Path, names: Iterable[str]) -> str:
        """Take files of a folder, which nobody writes to any more, into ``payload/`` and give the payload's name.

        They are hard links where that is possible.
        """
        target = self.new_payload()
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(folder / name, target / name)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                    raise
                shutil.copyfile(folder / name, target / name)
        return target.name

    def drop_payload(self, record: Record) -> None:
        """Remove the files of a record that was sent, if `new_payload` named them."""
        if isinstance(record, MetricsRecord | StatusRecord | TagsRecord) or not _PAYLOAD.fullmatch(record.payload):
            return
        if isinstance(record, ImageRecord):
            (self.payload / record.payload).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.payload / record.payload, ignore_errors=True)

    def close(self) -> None:
        """Let another process open it."""
        self.sync()
        self._log.close()
        self._lock_file.close()

    def _read_sent(self) -> int:
        """Bytes of the log that were sent; 0 if that is not known, as after a crash of the machine: twice is once."""
        try:
            return int(json.loads(self._sent_path.read_bytes())["offset"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return 0

    def _take_lock(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    self._lock_file.close()
                    raise UserError(
                        f"spool {self.folder}",
                        got="a process that has it open",
                        expected="none",
                        remedy="wait until the training that writes it has ended",
                    ) from error
                time.sleep(0.1)

    def _drop_torn_line(self) -> None:
        """Cut the last line if its writer ended in the middle of it."""
        path = self.folder / "records.jsonl"
        end = path.stat().st_size
        with path.open("rb") as log:
            whole, step = end, 2**16
            while whole > 0:
                start = max(0, whole - step)
                log.seek(start)
                newline = log.read(whole - start).rfind(b"\n")
                if newline >= 0:
                    whole = start + newline + 1
                    break
                whole = start
        if whole < end:
            os.truncate(path, whole)


def _record(fields: dict[str, Any]) -> Record:
    return _KINDS[fields.pop("kind")](**fields)
