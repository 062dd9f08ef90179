"""What pages point at is there: pages, headings, pictures, tests, targets of make."""

from __future__ import annotations

import re
import subprocess
from functools import cache

import pytest

from tests.documents.pages import blocks, inline_code, pages
from tests.support import ROOT

PAGES = pages()
SOURCES = {"benchmarks", "cluster", "datasets_prep", "docs", "drl_dist", "findings", "jobs", "tests"}
"""Folders that are part of the project."""
TO_BE_FILLED_IN = re.compile(r"(?<![A-Za-z])[A-Z]{3,}(?![A-Za-z])")
"""``NAME`` in ``jobs/NAME.py`` or ``jobs/train_NAME.py``."""


def without_code(text: str) -> str:
    """A page without what stands between fences."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (numbered := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(numbered)
    return found


def test_anchors_are_those_of_github() -> None:
    assert anchors("# A `b` c, d!\n## 4a. Ray's launcher\n```sh\n# no heading\n```\n## [Log](x.md) Z\n## Log Z\n") == {
        "a-b-c-d",
        "4a-rays-launcher",
        "log-z",
        "log-z-1",
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = without_code(PAGES[page])
    wrong: list[str] = []
    for target in re.findall(r"\]\(<?([^)>\s]+)>?[^)]*\)", text) + re.findall(
        r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE
    ):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        if not place.exists():
            wrong.append(target)
        elif anchor and (place.suffix != ".md" or anchor not in anchors(place.read_text())):
            wrong.append(f"{target}: no such heading")
    assert not wrong, f"{page} points at {', '.join(wrong)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_section_named_by_its_title_is_there(page: str) -> None:
    """``see *Machines that come and go*``, ``section *Watching*``"""
    headings = {re.sub(r"^#+ ", "", line) for line in PAGES[page].splitlines() if line.startswith("#")}
    named = re.findall(r"(?:\bsee|[Ss]ection) \*([^*\n]+)\*", PAGES[page])
    assert set(named) <= headings, set(named) - headings


def test_every_picture_is_shown_somewhere() -> None:
    shown = set(re.findall(r"\(images/([^)]+)\)", "".join(PAGES.values())))
    kept = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert shown == kept
    for name in kept:
        assert (ROOT / "docs" / "images" / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n"), name


@cache
def defined(path: str) -> set[str]:
    return set(re.findall(r"^(?:def|class) (\w+)", (ROOT / path).read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_test_and_file_that_is_named_is_there(page: str) -> None:
    """``tests/x.py::test_y``, ``…::test_z`` in the file named before, ``drl_dist/x.py:name``, ``cluster/x.yaml``."""
    wrong: list[str] = []
    before = ""
    for line, code in inline_code(PAGES[page]):
        for word in code.split():
            found = re.fullmatch(r"(?:((?:\w+/)+[\w.-]+)|…)(?:(::?)(\w+))?", word)
            # What commands leave in var/ is there on some machines and not on others.
            if found is None or (found[1] and found[1].partition("/")[0] not in SOURCES):
                continue
            path, colons, name = found.groups()
            # A folder may be one that is made; NAME is to be filled in.
            if path and ("." not in path.rpartition("/")[2] or TO_BE_FILLED_IN.search(path)):
                continue
            if path and not (ROOT / path).exists():
                wrong.append(f"line {line}: {word}: no such file")
            elif name and (path or before):
                place = path or before
                text = (ROOT / place).read_text()
                is_there = name in defined(place) if colons == "::" else re.search(rf"\b{name}\b", text)
                if not is_there:
                    wrong.append(f"line {line}: {place} has no {name}")
            before = path if path and path.endswith(".py") else before
    assert not wrong, "\n".join(wrong)


def test_help_of_make_lists_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)).split()
    targets = re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE)
    assert sorted(phony) == sorted(targets)
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = re.findall(r"^make ([\w-]+) +\S", printed.stdout, re.MULTILINE)
    assert sorted(listed) == sorted({*targets} - {"help"})
    for target in listed:
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_is_closed_and_named(page: str) -> None:
    """A block of an unknown language would pass every test unread."""
    assert len(re.findall(r"^ *```", PAGES[page], re.MULTILINE)) == 2 * len(blocks(PAGES[page]))
    known = {"", "sh", "python", "json", "yaml", "text", "{eval-rst}"}
    assert {language for _, language, _ in blocks(PAGES[page])} <= known
