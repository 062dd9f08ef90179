"""What the map from the paper to the code names is there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs" / "paper_to_code.md").read_text()
NAMES = sorted(set(re.findall(r"`([\w/]+\.py):(\w+)`", PAGE)))
FILES = sorted(set(re.findall(r"`([\w/]+\.py)`", PAGE)))
PAGES = sorted(set(re.findall(r"\]\((\w+\.md)\)", PAGE)))


def test_the_map_is_read() -> None:
    assert len(NAMES) > 30
    assert len(FILES) > 10
    assert len(PAGES) > 5


@pytest.mark.parametrize(("path", "name"), NAMES)
def test_every_name_is_defined_where_the_map_says(path: str, name: str) -> None:
    defined: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    assert name in defined


@pytest.mark.parametrize("path", FILES + [f"docs/{page}" for page in PAGES])
def test_every_file_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(("kind", "count"), [("Equations", 50), ("Tables", 6), ("Figures", 21)])
def test_nothing_with_a_number_is_left_out(kind: str, count: int) -> None:
    section = PAGE.split(f"## {kind}\n")[1].split("\n## ")[0]
    numbers: set[int] = set()
    for first_cell in re.findall(r"^\| ([^|:]*)[|:]", section, re.MULTILINE):
        for first, last in re.findall(r"\b(\d+)(?: to (\d+))?", first_cell):
            numbers.update(range(int(first), int(last or first) + 1))
    assert numbers == set(range(1, count + 1))
