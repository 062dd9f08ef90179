"""A job's output folder: whose request it holds, what earlier starts left of the work, and what may be removed.

A folder belongs to one request, which it holds as JSON. The same request resumes there or has nothing to do; another
one is refused with the difference shown, and nothing of what lies there is touched.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.config.tree import differences
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.index import INDEX_NAME

REQUEST_NAME = "request.json"
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


def read_json(folder: Folder, name: str, *, what: str = "", option: str = "--out") -> dict[str, Any] | None:
    """The JSON object in a file, None if there is no such file.

    Args:
        folder: of the file.
        name: of the file.
        what: what it is, for the message; by default the output that the folder is.
        option: that names it.

    Raises:
        UserError: the storage does not answer, or the file holds something else.
    """
    try:
        text = folder.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(
            what or f"output {folder.url}",
            got=f"a damaged {name}",
            expected="JSON that says what was asked for",
            remedy=f"copy the file again, or choose another {option}",
        )
    return found


def refuse_other(
    url: str, found: Mapping[str, Any], wanted: Mapping[str, Any], *, noun: str = "another request"
) -> None:
    """Return if two requests are the same.

    Args:
        url: the folder.
        found: the request that it holds.
        wanted: the request at hand.
        noun: what another request is called.

    Raises:
        UserError: they differ.
    """
    if other := differences(dict(found), as_json(wanted)):
        raise UserError(
            f"output {url}",
            got=f"{noun} ({', '.join(other)})",
            expected="an empty folder, or this request",
            remedy="choose another --out, or repeat the command that began there",
        )


def refuse_without_request(
    url: str,
    names: Collection[str],
    written: Iterable[str],
    *,
    below: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> None:
    """Return if a folder that holds no request holds nothing that a job would write over; other files do no harm.

    Args:
        url: the folder.
        names: of its files.
        written: regular expressions of what the job at hand writes there.
        below: the same of its subfolders, by their names.

    Raises:
        UserError: it does, or it is the folder of another job or data set; or the storage does not answer.
    """
    found = _matching(names, written)
    for subfolder, patterns in below.items():
        found += [f"{subfolder}/{name}" for name in _matching(Folder(joined(url, subfolder)).sizes(), patterns)]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"output {url}",
            got=", ".join(found[:3]) + more + " of something else",
            expected="an empty folder, or one that this command began",
            remedy="choose another --out",
        )


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    pattern = re.compile("|".join([*patterns, re.escape(REQUEST_NAME), re.escape(INDEX_NAME)]))
    return sorted(name for name in names if pattern.fullmatch(name))


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
        try:
            arrays = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        except (SafetensorError, ValueError):
            return None
        told: dict[str, str] = header.get("__metadata__", {})
        facts = told.get("facts", "")
        if told.get("request") != request or told.get("sha256") != _checksum(arrays, facts):
            return None
        return cls(arrays, json.loads(facts))


class Records:
    """The folder of records below an output folder.

    Args:
        url: the output folder.
    """

    def __init__(self, url: str) -> None:
        self.folder = Folder(joined(url, RECORDS_FOLDER))

    def read(self, names: Iterable[str]) -> list[bytes]:
        """The bytes of some records, which are there."""
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(self.folder.read, names))

    def are_of(self, request: Mapping[str, Any], name: str = REQUEST_NAME) -> bool:
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


class JobFolder:
    """An output folder with its request in ``request.json``, written before anything else.

    Args:
        url: the folder.
        job: what is made there, e.g. ``drl_dist.long_run``.
        result: the file that is written last, whose presence says that the folder is complete.
        written: regular expressions of the names of all other files that the job writes there.
        below: the same of its subfolders, by their names.
        noun: what another request is called.
    """

    def __init__(
        self,
        url: str,
        job: str,
        *,
        result: str,
        written: Collection[str] = (),
        below: Mapping[str, Collection[str]] = MappingProxyType({}),
        noun: str = "another request",
    ) -> None:
        self.url = url.rstrip("/") or "/"
        self.files, self.records = Folder(self.url), Records(self.url)
        self._head = {"format": job, "version": 1}
        self._result, self._written, self._noun = result, [re.escape(result), *written], noun
        self._below = {RECORDS_FOLDER: (), **below}

    def check(self, fields: Mapping[str, Any]) -> None:
        """Return if the folder holds nothing, or a request that agrees in some fields: those known before a model is.

        Raises:
            UserError: the storage does not answer, or the folder holds something else.
        """
        found = self._found()
        if found is not None:
            wanted = self._head | dict(fields)
            refuse_other(self.url, {name: found.get(name) for name in wanted}, wanted, noun=self._noun)

    def is_complete(self, request: Mapping[str, Any]) -> bool:
        """Whether an earlier start of this request has finished; errors as `check`."""
        found = self._found()
        if found is None:
            return False
        refuse_other(self.url, found, self._head | dict(request), noun=self._noun)
        return self._result in self.files.sizes()

    def begin(self, request: Mapping[str, Any]) -> None:
        """Write what the folder is for; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        self.files.write(REQUEST_NAME, (json.dumps(self._head | dict(request), indent=2) + "\n").encode())

    def _found(self) -> dict[str, Any] | None:
        """The request that the folder holds."""
        check_reachable(self.url)
        names = self.files.sizes()
        if REQUEST_NAME not in names:
            refuse_without_request(self.url, names, self._written, below=self._below)
            return None
        found = read_json(self.files, REQUEST_NAME)
        assert found is not None
        if found.get("format") != self._head["format"]:
            raise UserError(
                f"output {self.url}",
                got=f"the output of another job ({found.get('format', 'unknown')})",
                expected="an empty folder, or one that this command began",
                remedy="choose another --out",
            )
        return found


class SaveClock:
    """When it is time for the next record of work that goes on: not too often, and not at too high a cost."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SAVE_SECONDS

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def saved(self, began: float) -> None:
        """Start anew after a record.

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
