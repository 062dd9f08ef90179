"""Records of a job's unfinished work, in a folder of their own below its output folder: written, read, removed."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder

RECORDS_FOLDER = "_progress"
SAVE_SECONDS = 10.0
"""Seconds between two records of the same work, at least."""
_COST = 20
"""A record may take one part in so many of the time."""
_THREADS = 8
# That of safetensors' own reader.
_MAX_HEADER_BYTES = 100_000_000


def as_json(value: Any) -> Any:
    """What JSON makes of a value: lists for tuples."""
    return json.loads(json.dumps(value))


def digest_of(request: Mapping[str, Any]) -> str:
    """SHA-256 over all fields of a request, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def read_arrays(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]] | None:
    """The arrays and the metadata of safetensors, None for bytes that are none."""
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError):
        return None
    return arrays, header.get("__metadata__", {})


class Record(NamedTuple):
    """What is kept of unfinished work."""

    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]
    """What else is known, as JSON."""

    def to_bytes(self, request: str) -> bytes:
        """The record as safetensors, bound to a request by its digest and to its content by a checksum."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        facts = json.dumps(self.facts, sort_keys=True)
        return save(arrays, {"request": request, "facts": facts, "sha256": _checksum(arrays, facts)})

    @classmethod
    def from_bytes(cls, data: bytes, request: str) -> Record | None:
        """The record in these bytes, None if it was made for another request or is damaged."""
        found = read_arrays(data)
        if found is None:
            return None
        arrays, metadata = found
        facts = metadata.get("facts", "")
        if metadata.get("request") != request or metadata.get("sha256") != _checksum(arrays, facts):
            return None
        return cls(arrays, json.loads(facts))


class Records:
    """The folder of records below an output folder.

    Args:
        url: the output folder.
    """

    def __init__(self, url: str) -> None:
        self.folder = Folder(joined(url, RECORDS_FOLDER))

    def read(self, names: Iterable[str]) -> Iterator[bytes]:
        """The bytes of some records, which are there; a few are read ahead, and none is kept."""
        with ThreadPoolExecutor(_THREADS) as threads:
            ahead: deque[Future[bytes]] = deque()
            for name in names:
                ahead.append(threads.submit(self.folder.read, name))
                if len(ahead) > 2 * _THREADS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def present(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of those records that are there, in the order of `names`, one after another."""
        there = self.folder.sizes()
        found = [name for name in names if name in there]
        return zip(found, self.read(found), strict=True)

    def are_of(self, request: Mapping[str, Any], name: str) -> bool:
        """Whether the records are those of a request, which the file `name` beside them holds."""
        try:
            found = json.loads(self.folder.read(name))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        return found == as_json(request)

    def write(self, records: Mapping[str, bytes]) -> None:
        """Write records, each of them whole or not at all."""
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(self.folder.write, records.keys(), records.values()))

    @contextmanager
    def written_behind(self) -> Iterator[Callable[[str, bytes], None]]:
        """Write records, by name and bytes, while the caller goes on; at the end of the body all of them are there.

        A driver of thousands of workers that waited for each record would be behind them all the time.
        """
        with ThreadPoolExecutor(_THREADS) as threads:
            begun: deque[Future[None]] = deque()

            def write(name: str, data: bytes) -> None:
                begun.append(threads.submit(self.folder.write, name, data))
                while len(begun) > 2 * _THREADS or (begun and begun[0].done()):
                    begun.popleft().result()

            yield write
            for written in begun:
                written.result()

    def load(self, name: str, request: str) -> Record | None:
        """One record, None if there is none of this request that is whole.

        Args:
            name: of the file.
            request: its digest.
        """
        try:
            data = self.folder.read(name)
        except FileNotFoundError:
            return None
        return Record.from_bytes(data, request)

    def remove(self, names: Sequence[str]) -> None:
        """Remove records, and the folder if nothing else is in it.

        Args:
            names: of all that the job writes here, the most important one last, as it is removed.
        """
        self.folder.remove_written(names)
        self.folder.remove_if_empty()

    def remove_bound(self, names: Sequence[str], request: str) -> None:
        """As `remove`, but of records as `Record.to_bytes` makes them, and only those of one request.

        Args:
            names: as for `remove`.
            request: its digest; a file of the same name that does not name it is somebody else's.
        """
        self.folder.remove_parts(names)
        there = self.folder.sizes()
        present = [name for name in names if name in there]
        with ThreadPoolExecutor(_THREADS) as threads:
            bound = list(threads.map(self._request_of, present))
        if own := [name for name, found in zip(present, bound, strict=True) if found == request]:
            self.folder.remove_written(own)
        self.folder.remove_if_empty()

    def _request_of(self, name: str) -> str | None:
        """The request that a record names, without reading its arrays."""
        size = int.from_bytes(self.folder.read(name, 0, 8), "little")
        if not 0 < size <= _MAX_HEADER_BYTES:
            return None
        try:
            return json.loads(self.folder.read(name, 8, 8 + size))["__metadata__"]["request"]
        except (ValueError, KeyError, TypeError):
            return None


class SaveClock:
    """When it is time for the next record of work in progress: not too often, and not at too high a cost."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SAVE_SECONDS

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def saved(self, began: float) -> None:
        """Wait again, after a record.

        Args:
            began: when writing it began, in seconds of `time.monotonic`.
        """
        now = time.monotonic()
        self._next = now + max(SAVE_SECONDS, _COST * (now - began))


def _checksum(arrays: Mapping[str, NDArray[Any]], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
