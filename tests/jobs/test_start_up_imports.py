"""What each process of a training job imports before it is needed: nothing that costs seconds and is not used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

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
