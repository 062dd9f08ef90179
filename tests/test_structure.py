"""The code's rooms and what they import, counted by ``.ci/structure.py``."""

from __future__ import annotations

import ast
import importlib.util
import sys
from types import ModuleType

import pytest

from tests.support import ROOT

MAX_ROOMS, MAX_FLOORS, MAX_ARROWS = 32, 10, 164
"""What the code keeps to; an arrow more is a decision, to be explained in docs/architecture.md."""


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", ROOT / ".ci/structure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = module
    spec.loader.exec_module(module)
    return module


def test_the_rooms_are_few_and_there_is_no_circle(structure: ModuleType) -> None:
    found = structure.read_structure(ROOT)
    assert found.circles == []
    assert len(found.arrows) <= MAX_ROOMS
    assert len(found.floors()) <= MAX_FLOORS
    assert found.num_arrows <= MAX_ARROWS


def test_a_circle_is_found_and_floors_are_counted(structure: ModuleType) -> None:
    line = structure.Structure({"roof": {"walls"}, "walls": {"ground"}, "ground": set()})
    assert line.circles == [] and line.floors() == [["ground"], ["walls"], ["roof"]] and line.num_arrows == 2
    ring = structure.Structure({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert ring.circles == [frozenset("abc")]


def test_every_command_has_a_folder_of_its_name() -> None:
    folders = {path.name for path in (ROOT / "drl_dist/jobs").iterdir()}
    named = {
        path.stem.partition("_")[0] if path.stem.startswith("train_") else path.stem
        for path in (ROOT / "jobs").glob("*.py")
    }
    # Two commands over one job, one picture of what is tracked, and the demonstration, which is one file.
    assert named - folders == {"inpaint", "interpolate", "curves", "demo"} and "edit" in folders


@pytest.mark.slow
def test_no_module_of_tests_imports_another() -> None:
    # What two of them need is in tests/helpers, tests/support.py or a conftest.py, whose fixtures need no import.
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if name.rpartition(".")[2].startswith(("test_", "conftest")):
                found.setdefault(str(path.relative_to(ROOT)), []).append(name)
    assert found == {}
