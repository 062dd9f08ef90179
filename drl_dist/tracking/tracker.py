"""The tracker of a training run: everything goes to the server by way of a spool, so that the server may be down."""

from __future__ import annotations

import getpass
import json
import logging
import math
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from drl_dist.checkpoints.format import MODEL_FILES
from drl_dist.tracking.metrics import page_name
from drl_dist.tracking.server.address import server_uri
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
from drl_dist.tracking.system_metrics import SYSTEM_SECONDS, SystemMetrics

if TYPE_CHECKING:
    from drl_dist.tracking.runs import RunStatus
    from drl_dist.tracking.sender import Sender

log = logging.getLogger(__name__)

SEND_SECONDS = 2.0
_PNG = b"\x89PNG\r\n\x1a\n"
LONGEST_PAUSE = 30.0
_NAME = re.compile(r"[A-Za-z0-9_\-./ ]{1,250}")


class Tracker:
    """Tells the server about one run. Every call returns at once; a thread sends.

    The thread imports MLflow too, before it sends for the first time: that takes seconds, in which training begins.
    Nothing here waits for the server or fails because of it: what was not sent stays in the spool, is sent when it
    answers again, by the next `Tracker` on the same folder, or by ``python -m drl_dist.tracking.sync``.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        run_id: from `open_run`.
        spools: local folder with a spool per run, by default in the system's temporary folder; what an earlier process
            on this machine left unsent there is sent first.
        system_since: log the load of this machine, under the seconds since this time, itself in seconds since 1970;
            not at all if it is None.

    Raises:
        UserError: no server is named, or another process has the spool open.
        ModuleNotFoundError: MLflow is not installed.
    """

    def __init__(
        self, uri: str | None, run_id: str, spools: Path | None = None, *, system_since: float | None = None
    ) -> None:
        if find_spec("mlflow") is None:
            raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
        self._uri, self.run_id = server_uri(uri), run_id
        self._spool = Spool((spools or default_spools()) / run_id)
        (self._spool.folder / "run.json").write_text(json.dumps({"uri": self._uri, "run_id": run_id}))
        self._sender: Sender | None = None
        self._told_at = 0.0
        self._samples_system, self._epoch = system_since is not None, system_since or 0.0
        self._system: SystemMetrics | None = None
        self._system_at = 0.0
        # An earlier process may have left a status to be sent; the run runs again.
        self._spool.append(StatusRecord("RUNNING"))
        self._wake, self._closing, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_until_closed, name="tracker", daemon=True)
        self._thread.start()

    @property
    def spool(self) -> Path:
        """This run's spool folder."""
        return self._spool.folder

    @property
    def unsent_bytes(self) -> int:
        """Bytes that are still to be sent to the server."""
        return self._spool.unsent_bytes

    @property
    def told_at(self) -> float:
        """When the server last took a record of this process, or there was none to be sent, in seconds since 1970; 0
        before."""
        return self._told_at

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step; one that is not finite shows as a gap. A step may be logged again after a restart."""
        for name in values:
            _check_name(name)
        self._append(MetricsRecord(step, _now_ms(), {page_name(name): float(value) for name, value in values.items()}))

    def log_image(self, name: str, step: int, png: bytes) -> None:
        """A picture of a step.

        Args:
            name: the newest picture of a name is the artifact ``NAME.png``, and each is below ``pictures/NAME``.
            step: training steps done.
            png: the picture as a PNG file, which is kept as it is.
        """
        _check_name(name)
        if not png.startswith(_PNG):
            raise ValueError(f"image {name} is no PNG file: it begins with {png[:8]!r}")
        path = self._spool.new_payload(".png")
        path.write_bytes(png)
        self._append(ImageRecord(name, step, _now_ms(), path.name))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run, of at most 8000 characters each; the newest counts."""
        self._append(TagsRecord(dict(tags)))

    def register_checkpoint(self, model_name: str, step: int, folder: Path, metadata: Mapping[str, object]) -> None:
        """See `drl_dist.tracking.registry.register_checkpoint`. The folder may be removed after the call."""
        tags = {name: str(value) for name, value in metadata.items()}
        payload = self._spool.keep_files(folder, MODEL_FILES)
        self._append(CheckpointRecord(model_name, step, payload, tags))

    def flush(self, deadline_seconds: float) -> bool:
        """Wait until everything was sent to the server; False if it was not by the deadline."""
        deadline = time.monotonic() + deadline_seconds
        while self._spool.unsent_bytes and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.05)
        return not self._spool.unsent_bytes

    def close(self, status: RunStatus | None = None, deadline_seconds: float = 60) -> bool:
        """End the sending, and with a status the run; False if not everything was sent by the deadline."""
        if self._closing.is_set():
            return not self._spool.unsent_bytes
        if status is not None:
            self._append(StatusRecord(status))
        self._closing.set()
        self._wake.set()
        self._thread.join(deadline_seconds)
        self._abandoned.set()
        self._wake.set()
        self._thread.join(5)
        if self._spool.unsent_bytes:
            log.warning(
                "MLflow server %s has not received everything about run %s; run `python -m drl_dist.tracking.sync "
                "--spool %s` when it answers",
                self._uri,
                self.run_id,
                shlex.quote(str(self._spool.folder)),
            )
            return False
        return True

    def _append(self, record: Record) -> None:
        if self._closing.is_set():
            raise RuntimeError("the tracker is closed")
        self._spool.append(record)

    def _send_until_closed(self) -> None:
        pause, is_away = SEND_SECONDS, False
        while not self._abandoned.is_set():
            self._wake.wait(0.2 if self._closing.is_set() else pause)
            self._wake.clear()
            try:
                self._sample_system()
                self._spool.sync()
                self._send(after_trouble=is_away)
            except ServerAway as trouble:
                if not is_away:
                    log.warning(
                        "MLflow server %s is away (%s); logging continues in %s", self._uri, trouble, self._spool.folder
                    )
                is_away, pause = True, min(2 * pause, LONGEST_PAUSE)
            except Exception:
                # Tracking must not end training: the records stay, and the log says what happened.
                log.exception("run %s could not be tracked; trying again", self.run_id)
                is_away, pause = True, min(2 * pause, LONGEST_PAUSE)
            else:
                if is_away:
                    log.warning("MLflow server %s is back", self._uri)
                is_away, pause = False, SEND_SECONDS
                if self._closing.is_set() and not self._spool.unsent_bytes:
                    break
        self._spool.close()

    def _sample_system(self) -> None:
        """Log the machine's load from time to time."""
        now = time.monotonic()
        if not self._samples_system or self._closing.is_set() or now < self._system_at:
            return
        if self._system is None:
            self._system, self._system_at = SystemMetrics(), now + SYSTEM_SECONDS / 3
            # A processor's load is that since the sample before; of the first one it is always 0.
            self._system.sample()
            return
        self._system_at = now + SYSTEM_SECONDS
        if values := self._system.sample():
            self._append(MetricsRecord(round(time.time() - self._epoch), _now_ms(), values))

    def _send(self, *, after_trouble: bool) -> None:
        from drl_dist.tracking.sender import Sender
        from drl_dist.tracking.server.answers import probe

        if self._sender is None:
            self._sender = Sender(self._uri, self.run_id, self._spool)
        # A server that is away is asked in seconds; mlflow itself would wait and repeat for longer.
        if after_trouble and (trouble := probe(self._uri, seconds=3)) is not None:
            raise ServerAway(trouble.got)
        while self._spool.unsent_bytes and not self._abandoned.is_set():
            self._sender.send_some()
            self._told_at = time.time()
        if not self._spool.unsent_bytes:
            self._told_at = time.time()


def default_spools() -> Path:
    """This user's folder of spools on this machine."""
    return Path(tempfile.gettempdir()) / f"drl-spools-{getpass.getuser()}"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no metric or image name: letters, digits, and _ - . / and blanks")


def _now_ms() -> int:
    return math.floor(time.time() * 1000)
