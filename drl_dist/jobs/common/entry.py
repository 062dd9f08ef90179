"""The entry point of every command: options understood, heavy imports, signals, work, exit status."""

from __future__ import annotations

import json
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from drl_dist.common.imports import no_collection
from drl_dist.common.program import entry_point, interrupt_quietly, stop_on_signals
from drl_dist.common.waiting import Waiting, count_silence

# Before what takes longer.
interrupt_quietly()
from drl_dist.jobs.common.options import parse_options  # noqa: E402

Options = TypeVar("Options")
Wanted = TypeVar("Wanted")
Work = str | Callable[[Wanted], int]
"""What a command does, as a function, or as ``module:function`` where importing it takes seconds."""


def run_job(
    default: Options,
    work: Work[Options],
    *,
    description: str,
    check: Callable[[Options], object] = lambda _: None,
    resumes: bool,
) -> NoReturn:
    """A command whose options are the fields of a dataclass.

    Args:
        default: the options where none is given.
        work: of options that are in order; the exit status.
        description: for ``--help``.
        check: raises `UserError` for options that no job can have.
        resumes: whether the same command resumes after a stop, which then ends it with `EXIT_STOPPED`.
    """

    def parse(argv: Sequence[str]) -> tuple[Options, bool]:
        options = parse_options(type(default), default, argv, description=description)
        check(options)
        return options, False

    run_command(parse, work, resumes=resumes)


def run_command(
    parse: Callable[[Sequence[str]], tuple[Wanted, bool]],
    work: Work[Wanted],
    *,
    as_json: Callable[[Wanted], object] | None = None,
    resumes: bool = True,
) -> NoReturn:
    """A command: understand its arguments, then print what is wanted, or do it.

    Args:
        parse: what the arguments want, and whether only that is printed; raises `UserError`.
        work: does it; the exit status.
        as_json: what is printed by ``--dry-run``, of commands that have this option.
        resumes: whether the same command resumes after a stop, which then ends it with `EXIT_STOPPED`.
    """

    def command() -> int:
        wanted, is_dry_run = parse(sys.argv[1:])
        if is_dry_run and as_json is not None:
            print(json.dumps(as_json(wanted), indent=2, allow_nan=False))
            return 0
        if resumes:
            # Before the imports, which take seconds: a stop meanwhile is a stop like any other.
            stop_on_signals()
        count_silence()
        # Heavy imports wait until the options are understood.
        with Waiting(Path(sys.argv[0]).name, stream=sys.stderr) as waiting, no_collection():
            waiting.begin("importing libraries", is_told=False)
            function = pkgutil.resolve_name(work) if isinstance(work, str) else work
        return function(wanted)

    entry_point(command)
