"""Whether a program understands a documented command: each is asked itself, up to where its work would begin."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest

from drl_dist.checkpoints import run_config
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.common import entry, estimate
from drl_dist.jobs.train import options as train_options
from drl_dist.jobs.train import own_options
from tests.support import ROOT, require

ELIDED = "…"
"""At the end of a command: its other options are left out. As an option's value: any value."""
HERE = "/somewhere"
"""An absolute path, which every option that names a place accepts."""
ENDING = {"--help", "-h", "--dry-run", "--estimate", "--tflops"}
"""Options with which commands print and end."""
WORK = {
    "drl_dist": "drl_dist.console.command.do",
    "drl_dist.tracking.sync": "drl_dist.tracking.server.client.connect",
    "benchmarks.sweep": "drl_dist.data.index.open_index",
}
"""Where the work of a program begins, if it is not one of ``jobs/`` and does not follow `argparse`."""


class Understood(BaseException):
    """The program has accepted all its options and would begin its work."""


class Refused(AssertionError):
    """The program does not accept a command."""


def python(words: Sequence[str], folder: Path) -> None:
    """Let one of our programs read its options; ``datasets_prep`` does its work, too.

    Args:
        words: those after ``python``.
        folder: where relative paths lead.

    Raises:
        Refused: no such program, or it refuses the command, in its own words.
    """
    if tuple(words[:2]) == ("-m", "pytest"):
        return _pytest(words[2:], folder)
    if not (ROOT / words[0]).is_file() and (written := folder / words[0]).is_file():
        return _compile(written)
    program, source, arguments = _program(words)
    is_partial = ELIDED in arguments[-1:]
    arguments = [filled(word) for word in (arguments[:-1] if is_partial else arguments)]
    told = io.StringIO()
    with _until_its_work(program), contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        sys.argv = [str(source), *arguments]
        try:
            with contextlib.chdir(folder):
                if words[0] == "-m":
                    runpy.run_module(program, run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(str(source), run_name="__main__")
        except Understood:
            return
        except UserError as error:
            raise Refused(f"it ends with a traceback: {error}") from None
        except SystemExit as end:
            ends = program.startswith("datasets_prep.") or not ENDING.isdisjoint(arguments)
            if end.code in (0, None) and ends:
                return
            missing = re.match(r"(?:option )?(--[\w.-]+): |command line: got no (--[\w.-]+)", told.getvalue())
            if is_partial and missing and not {missing[1] or missing[2]} & set(arguments):
                return
            raise Refused(f"status {end.code}: {told.getvalue().strip() or 'its work was not noticed'}") from None
    raise Refused("it ended without a word: say in `WORK` where its work begins")


def _program(words: Sequence[str]) -> tuple[str, Path, list[str]]:
    """Name, source file and arguments of the program that Python runs."""
    if words[0] == "-m":
        source = ROOT / words[1].replace(".", "/")
        source = source / "__main__.py" if source.is_dir() else source.with_suffix(".py")
        arguments = words[2:]
    else:
        source, arguments = ROOT / words[0], words[1:]
    if not source.is_file():
        raise Refused(f"there is no {source.relative_to(ROOT)}")
    return words[1] if words[0] == "-m" else words[0], source, list(arguments)


def _compile(script: Path) -> None:
    """A script that the page itself has written; raises `Refused` if it is no Python."""
    try:
        compile(script.read_text(), script.name, "exec")
    except SyntaxError as error:
        raise Refused(f"{script.name}: {error}") from None


def _pytest(words: Sequence[str], folder: Path) -> None:
    """A choice of tests: files that are there, and `-k`; raises `Refused` for anything else."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-k")
    parser.add_argument("-m", choices=("integration", "faults", "slow"))
    parser.add_argument("files", nargs="*")
    try:
        chosen, unknown = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        raise Refused(str(error)) from None
    missing = [*unknown, *(path for path in chosen.files if not (folder / path).exists())]
    if missing:
        raise Refused(f"pytest: no {', '.join(missing)}")


def is_named(words: Sequence[str]) -> bool:
    """Whether words after ``python`` only name a program of ours, which is there; raises `Refused` if it is not."""
    return not words or (tuple(words[:2]) != ("-m", "pytest") and not _program(words)[2])


@contextlib.contextmanager
def _until_its_work(program: str) -> Iterator[None]:
    """Raise `Understood` where a program would begin its work."""

    def begin(*_: object, **__: object) -> NoReturn:
        raise Understood

    parse, command = argparse.ArgumentParser.parse_args, entry.run_command

    def parse_and_begin(self: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        parse(self, *arguments)
        raise Understood

    def understand(parse: Callable[..., Any], work: object, *, as_json: Any = None, resumes: bool = True) -> NoReturn:
        # A signal's handler, which a command that resumes sets, would outlive the command.
        command(parse, begin, as_json=as_json, resumes=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys.argv)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_begin)
        for module in (entry, train_options, own_options):
            patch.setattr(module, "run_command", understand)
        # `jobs/train.py` looks at data, runs and files before it understands its options.
        patch.setattr(own_options, "_experiment_of", lambda *_, **__: preset("digits", "unet"))
        patch.setattr(own_options, "_values_of", lambda _: {})
        patch.setattr(run_config, "stored_run", _a_run)
        patch.setattr(estimate, "estimate_lines", lambda *_, **__: [])
        # To be run as a program it must not be a module that is there.
        is_package = (ROOT / program.replace(".", "/")).is_dir()
        # A package stays: one that is imported again would lack the modules that others have imported of it.
        patch.delitem(sys.modules, f"{program}.__main__" if is_package else program, raising=False)
        if place := WORK.get(program):
            module_name, _, name = place.rpartition(".")
            patch.setattr(import_module(module_name), name, begin)
        loaded = set(sys.modules)
        try:
            yield
        finally:
            for name in set(sys.modules) - loaded:
                if any(value is begin for value in vars(sys.modules[name]).values()):
                    del sys.modules[name]


def _a_run(url: str) -> run_config.StoredRun:
    storage, _, name = url.rpartition("/")
    run = RunConfig(experiment=preset("digits", "unet"), data=HERE, storage=storage or HERE, run_name=name)
    return run_config.StoredRun(run=run, without_ray=False)


def filled(word: str) -> str:
    """A word of a command with values in place of what a reader has to fill in: ``URL``, ``STORAGE/RUN``, ``…``."""
    if word == ELIDED or re.fullmatch(r"(URL|[A-Z]+_URL|DIR|FOLDER|FILE|PATH|STORAGE)(/[\w/.-]*)?", word):
        return HERE
    if re.fullmatch(r"\w+=PATH", word):
        return word.replace("PATH", HERE)
    numbers = {"N": "3", "RATE": "2", "LOW": "0", "HIGH": "4095"}
    return (numbers | {"MIN:MAX": "2:8", "random-NN%": "random-30%"}).get(word, word)


def ray(words: Sequence[str], folder: Path) -> None:
    """Ray's own parser; what a job is to run is a command of its own.

    Raises:
        Refused: an unknown command or option, a missing argument, a file that is not there.
    """
    from ray.scripts.scripts import cli

    _click(cli, words, folder)


def serve(words: Sequence[str], folder: Path) -> None:
    """Ray Serve's own parser; raises as `ray` does."""
    from ray.serve.scripts import cli

    _click(cli, words, folder)


def mlflow(words: Sequence[str], folder: Path) -> None:
    """MLflow's own parser; raises as `ray` does."""
    from mlflow.cli import cli

    _click(cli, words, folder)


def _click(group: click.Command, words: Sequence[str], folder: Path) -> None:
    is_partial = ELIDED in words[-1:]
    with contextlib.chdir(folder):
        command, rest, context = group, [word for word in words if word != ELIDED or not is_partial], None
        try:
            while isinstance(command, click.Group):
                context = click.Context(command, info_name=command.name, parent=context)
                if not rest:
                    return
                _, found, rest = command.resolve_command(context, rest)
                assert found is not None
                command = found
            if not rest:
                # Named, not given: its arguments may be missing.
                return
            with contextlib.redirect_stdout(io.StringIO()):
                command.make_context(command.name, rest, parent=context)
        except click.exceptions.Exit:
            return
        except click.MissingParameter as error:
            if not is_partial:
                raise Refused(error.format_message()) from None
        except click.ClickException as error:
            raise Refused(error.format_message()) from None


def entrypoint(words: Sequence[str]) -> list[str]:
    """What ``ray job submit`` is to run: the words after ``--``; none for other commands."""
    if list(words[:2]) != ["job", "submit"] or "--" not in words:
        return []
    return list(words[words.index("--") + 1 :])


def make(words: Sequence[str], folder: Path) -> None:
    """What make would do; raises `Refused` if it has no such target."""
    done = subprocess.run(["make", "-n", *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr.strip())


def has_options(program: Sequence[str], words: Sequence[str]) -> None:
    """Whether a program's help lists every long option of a command; raises `Refused` for one that it does not."""
    names = [word for word in words if re.fullmatch(r"[a-z]+", word)]
    help_text = _help((*program, *names[: 2 if program[-1].endswith("uv") else 1]))
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and not re.search(rf"{re.escape(name)}(?![\w-])", help_text):
            raise Refused(f"no option {name}")


@cache
def _help(words: tuple[str, ...]) -> str:
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr.strip())
    return done.stdout + done.stderr


def uv(words: Sequence[str], folder: Path) -> None:
    """Options that uv's help lists, and files that are there."""
    has_options([str(Path(sys.prefix) / "bin" / "uv")], words)


def prometheus(words: Sequence[str], folder: Path) -> None:
    """Flags that Prometheus has, and a configuration that `promtool` accepts."""
    program = require("prometheus").with_name("prometheus")
    help_text = _help((str(program),))
    for word in words:
        name, _, value = word.partition("=")
        if not re.search(rf"{re.escape(name)}(?![\w.-])", help_text):
            raise Refused(f"no flag {name}")
        if name == "--config.file":
            promtool(["check", "config", "--syntax-only", value], folder)


def promtool(words: Sequence[str], folder: Path) -> None:
    """Really run: it reads files and changes nothing."""
    program = require("prometheus")
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr.strip() or done.stdout.strip())


JUDGES: dict[str, Callable[[Sequence[str], Path], None]] = {
    "python": python,
    "python3": python,
    "ray": ray,
    "serve": serve,
    "mlflow": mlflow,
    "make": make,
    "uv": uv,
    "prometheus": prometheus,
    "promtool": promtool,
    "pip": lambda words, folder: has_options([sys.executable, "-m", "pip"], words),
    "pre-commit": lambda words, folder: has_options([sys.executable, "-m", "pre_commit"], words),
}
"""How each program that is at hand is asked. Others need a mark in the page."""
