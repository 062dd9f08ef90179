"""A job's output folder: whose request it holds, what earlier starts left of the work, and what may be removed.

A folder belongs to one request, which it holds as JSON. The same request resumes there or has nothing to do; another
one is refused with the difference shown, and nothing of what lies there is touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from drl_dist.common.errors import UserError
from drl_dist.common.nested import differences, flatten
from drl_dist.common.places import joined
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.index import INDEX_NAME
from drl_dist.jobs.common.output.job_records import RECORDS_FOLDER, Records, as_json, digest_of

REQUEST_NAME = "request.json"


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
    what: str,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    noun: str = "another request",
    expected: str = "an empty folder, or this request",
    remedy: str = "choose another --out, or repeat the command that began there",
) -> None:
    """Return if two requests are the same.

    Args:
        what: the folder or file that holds the first one.
        found: the request that it holds.
        wanted: the request at hand.
        noun: what another request is called.
        expected: what would have been accepted, for the message.
        remedy: what to do about it, for the message.

    Raises:
        UserError: they differ.
    """
    if other := differences(dict(found), as_json(wanted)):
        fields = flatten(as_json(wanted)).keys()
        if 2 * len(fields - flatten(dict(found)).keys()) > len(fields):
            # A list of all the fields that such data do not have would say nothing.
            raise UserError(what, got="data or results of another kind", expected=expected, remedy=remedy)
        raise UserError(what, got=f"{noun} ({', '.join(other)})", expected=expected, remedy=remedy)


def refuse_foreign(
    url: str,
    written: Iterable[str],
    *,
    below: Mapping[str, Iterable[str]] = MappingProxyType({}),
    apart_from: Collection[str] = (),
) -> None:
    """Return if a folder that holds no request is empty: results do not belong among photographs, say.

    Hidden files are no reason to refuse it: file managers leave them, and so does a killed write.

    Args:
        url: the folder.
        written: regular expressions of what the job at hand writes there; such files are named first.
        below: the same of its subfolders, by their names; they may be there, if there is nothing in them.
        apart_from: names of further subfolders, which are looked at elsewhere.

    Raises:
        UserError: it is not, or the storage does not answer.
    """
    names = _shown(url)
    found = _matching(names, written)
    for subfolder, patterns in below.items():
        inside = _shown(joined(url, subfolder)) if subfolder in names else []
        ours = _matching(inside, patterns)
        known = set(ours)
        found += [f"{subfolder}/{name}" for name in [*ours, *(name for name in inside if name not in known)]]
    known = {*found, *below, *apart_from}
    _refuse(url, [*found, *(name for name in names if name not in known)])


def _shown(url: str) -> list[str]:
    return [name for name in Folder(url).names() if not name.startswith(".")]


def _refuse(url: str, found: Sequence[str]) -> None:
    """Raise `UserError` if something was found."""
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


class JobFolder:
    """An output folder, the request that it is for, and the records of unfinished work.

    The request of a `job` is in ``request.json``, written before anything else, and stays there. A job whose result
    itself says what it was made for has none: its request lies beside the records, and goes with them.

    Args:
        url: the folder.
        result: the file that is written last, whose presence says that the folder is complete.
        job: what is made there, e.g. ``drl_dist.long_run``.
        request_of_result: reads, in the place of `job`, what the result was made for.
        written: regular expressions of the names of all other files that the job writes there; see `refuse_foreign`.
        records: the same of its records.
        below: the same of further subfolders, by their names.
        noun: what another request is called.
        refuse: raises `UserError` if a request that was found is not the one at hand; its second argument says whether
            the result was made for it. By default every difference is refused.
    """

    def __init__(
        self,
        url: str,
        *,
        result: str,
        job: str | None = None,
        request_of_result: Callable[[], Mapping[str, Any]] | None = None,
        written: Collection[str] = (),
        records: Collection[str] = (),
        below: Mapping[str, Collection[str]] = MappingProxyType({}),
        noun: str = "another request",
        refuse: Callable[[Mapping[str, Any], bool], None] | None = None,
    ) -> None:
        assert (job is None) != (request_of_result is None)
        self.url = url.rstrip("/") or "/"
        self.files, self.records = Folder(self.url), Records(self.url)
        self._result, self._request_of_result, self._noun, self._refuse = result, request_of_result, noun, refuse
        self._head = {} if job is None else {"format": job, "version": 1}
        self._written = [re.escape(result), *written]
        self._below = {RECORDS_FOLDER: records, **below}

    def check(self, fields: Mapping[str, Any]) -> None:
        """Return if the folder holds nothing, or a request that agrees in some fields: those known before a model is.

        Raises:
            UserError: the storage does not answer, or the folder holds something else.
        """
        found, _ = self._found()
        if found is not None:
            self._compare({name: found.get(name) for name in self._head | dict(fields)}, fields)

    def is_complete(self, request: Mapping[str, Any]) -> bool:
        """Whether an earlier start of this request has finished; errors as `check`."""
        found, is_done = self._found()
        if found is not None:
            self._compare(found, request, is_done=is_done)
        return is_done

    def check_begun(self, request: Mapping[str, Any]) -> None:
        """Return if what was begun here beside a result, if anything, is this request; errors as `check`."""
        begun = self.begun()
        if begun is None:
            # In a complete folder all but the records is this job's.
            for subfolder, patterns in self._below.items():
                found = _matching(Folder(joined(self.url, subfolder)).sizes(), patterns)
                _refuse(self.url, [f"{subfolder}/{name}" for name in found])
        else:
            self._compare(begun, request)

    def begun(self) -> dict[str, Any] | None:
        """The request of unfinished work, None if there is none.

        Raises:
            UserError: the storage does not answer, or the request is damaged or another job's.
        """
        found = read_json(self.files if self._head else self.records.folder, REQUEST_NAME)
        if found is not None and self._head and found.get("format") != self._head["format"]:
            raise UserError(
                f"output {self.url}",
                got=f"the output of another job ({found.get('format', 'unknown')})",
                expected="an empty folder, or one that this command began",
                remedy="choose another --out",
            )
        return found

    def begin(self, request: Mapping[str, Any]) -> None:
        """Write what the folder is for; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        if self._head:
            self.files.write(REQUEST_NAME, (json.dumps(self._head | dict(request), indent=2) + "\n").encode())
        else:
            self.records.write({REQUEST_NAME: json.dumps(request).encode()})

    def finish(self, data: bytes) -> None:
        """Write the result, which completes the folder.

        Raises:
            UserError: the storage does not take it.
        """
        self.files.write(self._result, data)

    def clean_up(self, request: Mapping[str, Any], *, records: Sequence[str], files: Collection[str] = ()) -> None:
        """Remove the records of a request, and what a killed writer of its files left; nothing else.

        Args:
            request: the request at hand; records of another one stay.
            records: names of all its records.
            files: names of what it writes in the folder, the result apart.
        """
        self.files.remove_parts([self._result, *files, *([REQUEST_NAME] if self._head else [])])
        if self._head:
            self.records.remove_bound(records, digest_of(request))
            return
        if self.records.are_of(request, REQUEST_NAME):
            # The request goes last: without it, nobody knows whose the others are.
            self.records.remove([*records, REQUEST_NAME])
        # Or a clean-up that was killed has left an empty folder.
        self.records.folder.remove_if_empty()

    def _found(self) -> tuple[Mapping[str, Any] | None, bool]:
        """The request that the folder holds, None if it holds none, and whether its result is there."""
        check_reachable(self.url)
        is_done = self._result in self.files.sizes()
        found = self._request_of_result() if is_done and self._request_of_result is not None else self.begun()
        if found is None:
            refuse_foreign(self.url, self._written, below=self._below)
        return found, is_done

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any], *, is_done: bool = False) -> None:
        if self._refuse is not None:
            self._refuse(found, is_done)
        else:
            refuse_other(f"output {self.url}", found, self._head | dict(wanted), noun=self._noun)
