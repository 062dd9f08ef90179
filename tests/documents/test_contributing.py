"""What CONTRIBUTING.md says of changes, and what runs before a commit, is so."""

from __future__ import annotations

import re
import shlex

import pytest
from pre_commit.clientlib import load_config

from tests.support import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTION = PAGE.split("## Typical changes\n")[1].split("\n## ")[0]
CHANGES = {
    change: (code, proofs)
    for change, code, proofs in re.findall(r"^\| (an? [^|]+) \| (.+) \| (.+) \|$", SECTION, re.MULTILINE)
}
LIKE = {"a sampler kernel": "mala", "a data set": "digits", "a network": "unet", "a job over a model": "ood"}
"""A part that is there, for NAME of each kind of change."""


def files(cell: str) -> list[str]:
    return re.findall(r"`((?:\w+/)*[\w.]+)`", cell)


def test_the_changes_are_found() -> None:
    assert len(CHANGES) == 6
    assert {change for change, (code, _) in CHANGES.items() if "NAME" in code} == LIKE.keys()


@pytest.mark.parametrize("change", CHANGES)
def test_its_files_are_there(change: str) -> None:
    code, proofs = CHANGES[change]
    named = [name.replace("NAME", LIKE.get(change, "NAME")) for name in [*files(code), *files(proofs)]]
    assert files(code) and files(proofs)
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_a_commit_is_checked_by_make_lint_and_nothing_else() -> None:
    """And from this checkout alone: nothing is cloned."""
    (repository,) = load_config(ROOT / ".pre-commit-config.yaml")["repos"]
    (hook,) = repository["hooks"]
    assert repository["repo"] == "local" and hook["additional_dependencies"] == []
    assert shlex.split(hook["entry"]) == ["make", "lint"] and not hook["pass_filenames"]
    checked = ["drl_dist/x.py", ".ci/typings/x.pyi", "tests/x.py", "pyproject.toml", "constraints.txt", "Makefile"]
    assert [name for name in checked if not re.search(hook["files"], name)] == []
