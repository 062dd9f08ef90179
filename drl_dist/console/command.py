"""The commands of ``python -m drl_dist``: which there are, and what each of them wants."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pkgutil import resolve_name
from typing import Any, NoReturn

from drl_dist.common.errors import UserError
from drl_dist.common.program import entry_point

PROGRAM = "python -m drl_dist"


@dataclass(frozen=True)
class Command:
    """One command; everything is named, so that nothing is imported for a list of them."""

    summary: str
    """One line of the list."""
    options: str
    """``module:class`` of its options, a dataclass in which everything has a default."""
    work: str
    """``module:function`` of the options; the exit status."""
    check: str | None = None
    """``module:function`` that raises `UserError` for options that cannot be used."""


_HERE = "drl_dist.console"
COMMANDS = {
    "up": Command(
        "start a Ray head and an MLflow server on this machine",
        f"{_HERE}.options:UpOptions",
        f"{_HERE}.local:up",
        f"{_HERE}.options:check_up",
    ),
    "down": Command("stop what `up` started; data stay", f"{_HERE}.options:FolderOptions", f"{_HERE}.local:down"),
    "status": Command(
        "say what a run is doing, or what `up` runs", f"{_HERE}.options:StatusOptions", f"{_HERE}.status:status"
    ),
    "list": Command("list the runs of a storage", f"{_HERE}.options:ListOptions", f"{_HERE}.status:list_runs"),
    "compare": Command(
        "show in which settings two runs differ, and their curves in one picture",
        f"{_HERE}.options:CompareOptions",
        f"{_HERE}.compare:compare",
    ),
    "delete": Command(
        "remove a run: its checkpoints and files, its MLflow run and its model versions",
        f"{_HERE}.options:DeleteOptions",
        f"{_HERE}.delete:delete",
    ),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name; by default those of this process."""
    entry_point(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run the command that the arguments name; the exit status.

    Raises:
        UserError: there is no such command, or its arguments cannot be used.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(_version())
        return 0
    name = argv[0]
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UserError(
            f"command of {PROGRAM}",
            got=name,
            expected=f"one of {', '.join(COMMANDS)}",
            remedy=f"did you mean {nearest[0]}? --help says what each does" if nearest else "choose one of these",
        )
    command = COMMANDS[name]
    # tyro takes a fifth of a second to import.
    from drl_dist.jobs.common.options import parse_options

    kind: type[Any] = resolve_name(command.options)
    options = parse_options(kind, kind(), argv[1:], description=_sentence(command.summary), prog=f"{PROGRAM} {name}")
    if command.check is not None:
        resolve_name(command.check)(options)
    return do(command, options)


def do(command: Command, options: Any) -> int:
    """Do what a command is for, with options that are in order; the exit status."""
    work: Callable[[Any], int] = resolve_name(command.work)
    return work(options)


def overview() -> str:
    """What ``--help`` shows."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [OPTIONS]",
            "",
            "Servers on this machine, and what runs are doing.",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help shows the options of a command.",
        ]
    )


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _version() -> str:
    try:
        return version("drl_dist")
    except PackageNotFoundError:
        return "unknown (not installed)"
