"""What each process of a training job imports before it is needed: nothing that costs seconds and is not used."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.forked import real_python
from tests.support import ROOT, subprocess_environment

SWEEPS = "drl_dist.jobs.sweep"


def _file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)


def _imported(statements: list[ast.stmt]) -> Iterator[str]:
    """Modules that statements import as they run: not those in functions, nor those for a type-checker alone."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            # A name may be a module itself.
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.dump(statement.test):
            yield from _imported([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            yield from _imported([*statement.body, *statement.orelse, *statement.finalbody])


def _closure(module: str) -> set[str]:
    """All that is imported with one of the project's modules, as far as the project's own files say."""
    found, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [name.rpartition(".")[0]] if "." in name else []
        waiting += _imports_of(name)
    return found


@cache
def _imports_of(module: str) -> list[str]:
    path = _file(module) if module.startswith("drl_dist") else None
    return [] if path is None else list(_imported(ast.parse(path.read_text()).body))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        # Every rank: MLflow is for the first one alone, and a sweep hands its callback in.
        (
            "drl_dist.jobs.train.worker",
            {"mlflow", "ray.train.torch", "tyro", "timm", "torchvision", "sklearn", SWEEPS},
        ),
        # The first rank, until its tracker's thread sends for the first time.
        ("drl_dist.tracking.tracker", {"mlflow"}),
        # Ray's controller: its callbacks, its backend, its filesystem, and the workers' task.
        ("drl_dist.jobs.train.faults.restarts", {"torch", "mlflow", "ray.train.torch"}),
        ("drl_dist.jobs.train.group", {"torch", "mlflow", "ray.train.torch"}),
        ("drl_dist.jobs.train.storage", {"torch", "mlflow", "ray.train.torch"}),
        ("drl_dist.jobs.train.task", {"torch", "mlflow", "ray.train.torch", SWEEPS}),
        ("drl_dist.jobs.train.start", {"torch", "mlflow", "ray.train.torch", SWEEPS}),
        # The command.
        ("drl_dist.jobs.train.driver", {"torch", "ray.train.torch", "matplotlib", "webdataset", SWEEPS}),
        ("drl_dist.jobs.common.options", {"torch", "ray", "mlflow", "pyarrow", "numpy"}),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module: str, unwanted: set[str]) -> None:
    assert _file(module) is not None
    assert not unwanted & _closure(module)


def test_the_closure_sees_what_is_imported() -> None:
    assert {"torch", "ray", "numpy", "drl_dist.training.loop"} <= _closure("drl_dist.jobs.train.worker")
    assert {"mlflow", SWEEPS} <= _closure("drl_dist.jobs.sweep.trial")


_HELP = """
import contextlib, io, json, runpy, sys

found = {}
for place in sys.argv[1:]:
    sys.argv = [place, "--help"]
    run = runpy.run_path if place.endswith(".py") else runpy.run_module
    before = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            run(place, run_name="__main__", **({} if place.endswith(".py") else {"alter_sys": True}))
        except SystemExit:
            pass
    tops = {name.partition(".")[0] for name in set(sys.modules) - before}
    found[place] = {"help": "usage" in shown.getvalue(), "imported": sorted(tops)}
print(json.dumps(found))
"""
_HEAVY = {
    "torch", "numpy", "ray", "mlflow", "pyarrow", "PIL", "fsspec", "pandas", "scipy", "matplotlib", "webdataset",
    "lmdb", "sklearn", "safetensors", "pydantic", "ruamel", "optuna", "timm", "rich",
}  # fmt: skip


@pytest.mark.integration
def test_help_of_a_command_imports_nothing_heavy() -> None:
    commands = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "jobs").glob("*.py"))]
    commands += [f"datasets_prep.{path.stem}" for path in sorted((ROOT / "datasets_prep").glob("[a-z]*.py"))]
    commands += ["benchmarks.memory", "benchmarks.presets", "benchmarks.shares", "drl_dist.toy"]
    done = subprocess.run(
        [real_python(), "-c", _HELP, *commands],
        cwd=ROOT,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert len(found) == len(commands) > 20 and done.stderr == ""
    assert {name: bool(told["help"]) for name, told in found.items()} == dict.fromkeys(commands, True)
    assert {name: heavy for name, told in found.items() if (heavy := _HEAVY & set(told["imported"]))} == {}


@pytest.mark.integration
@pytest.mark.parametrize(
    "command",
    [
        ["jobs/sample.py"],
        ["-m", "datasets_prep.digits"],
        ["-m", "benchmarks.memory"],
        ["-m", "drl_dist.toy"],
        ["-m", "drl_dist", "status"],
    ],
)
def test_an_interrupt_during_imports_is_one_line(command: list[str], tmp_path: Path) -> None:
    # A module of this name is found before the real one.
    (tmp_path / "tyro.py").write_text("raise KeyboardInterrupt\n")
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt\n")
    environment = subprocess_environment({"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    done = subprocess.run(
        [real_python(), *command, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
