"""What a run has found so far: a line of JSON for each event, on disk as soon as it happens."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

RESULTS = "results.jsonl"
Status = Literal["running", "done", "skipped", "failed", "out of time", "cut short"]


@dataclass
class PartRecord:
    """What one part has found."""

    status: Status = "running"
    message: str = ""
    """Why it was skipped, or what failed."""
    until: float = 0.0
    """When its time is over, as `time.monotonic`."""
    seconds: float = 0.0
    """What it took."""
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def append(folder: Path, part: str, event: str, **values: Any) -> None:
    """Write one event, through to the disk; numbers that are not finite become their names."""
    line = json.dumps({"part": part, "event": event, **_writable(values)}, allow_nan=False)
    with (folder / RESULTS).open("ab+") as file:
        if file.tell() and _last_byte(file) != b"\n":
            # A process was ended in the middle of a line.
            line = "\n" + line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, PartRecord]:
    """Everything found so far, by part in order of their beginnings; lines that were cut short are left out."""
    path, found = folder / RESULTS, dict[str, PartRecord]()
    text = path.read_text() if path.is_file() else ""
    for line in text.splitlines():
        try:
            event: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        name, kind = event.pop("part"), event.pop("event")
        part = found.setdefault(name, PartRecord())
        if kind == "begin":
            part.until = event["until"]
        elif kind == "end":
            part.status, part.message, part.seconds = event["status"], event["message"], event["seconds"]
        else:
            part.rows.append(event)
    return found


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _writable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
