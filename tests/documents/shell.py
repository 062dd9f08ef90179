"""What the shell makes of a page: its commands with their words, as bash hands them to programs.

Bash really runs the text, with loops, variables and files that `mkdir`, `cp` and `sed` make, in a copy of the tree.
Programs that would train, or reach a cluster, are replaced by a stand-in that writes its words to a log.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.documents.pages import PROGRAMS, Snippet
from tests.support import ROOT

REAL = ("cat", "cp", "echo", "grep", "head", "mkdir", "openssl", "sed", "tail", "tr", "true")
"""Run as they are, in the copy of the tree."""
_RECORD = 'printf "%s\\0" "$DOC_PLACE" "$PWD" "$#" "$@" >> "$DOC_LOG"'


@dataclass(frozen=True)
class Command:
    """One command with its words, and the snippet that it comes from."""

    snippet: Snippet
    words: tuple[str, ...]
    folder: Path

    def __str__(self) -> str:
        return f"{self.snippet.place}: {shlex.join(self.words)}"


def make_tree(folder: Path) -> Path:
    """A copy of the tree to run a page's commands in, and beside it the stand-ins for programs."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for name in ("cluster", "docs", "jobs", "datasets_prep", "drl_dist", "benchmarks", "tests", "findings"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "images"))
    (tree / "docs" / "images").symlink_to(ROOT / "docs" / "images")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copyfile(path, tree / path.name)
    programs = folder / "bin"
    programs.mkdir()
    record = programs / ".record"
    record.write_text(f'#!/bin/bash\nset -- "${{0##*/}}" "$@"\n{_RECORD}\n')
    record.chmod(0o755)
    for name in PROGRAMS:
        (programs / name).symlink_to(record)
    for name in REAL:
        if place := shutil.which(name):
            (programs / name).symlink_to(place)
    (tree / ".venv").mkdir()
    (tree / ".venv" / "bin").symlink_to(programs)
    return tree


def commands(page: Sequence[Snippet], tree: Path) -> list[Command]:
    """The commands of snippets that one shell runs one after the other.

    Raises:
        AssertionError: bash cannot read them, or a variable has no value.
    """
    log = tree.parent / "log"
    log.write_bytes(b"")
    script = ["set -u", f"command_not_found_handle() {{ {_RECORD}; }}"]
    for number, snippet in enumerate(page):
        script += [f"export DOC_PLACE={number}", _quoted(snippet), "wait"]
    done = subprocess.run(
        ["/bin/bash", "-c", "\n".join(script)],
        cwd=tree,
        env={"PATH": str(tree.parent / "bin"), "HOME": str(tree), "DOC_LOG": str(log), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    wrong = [line for line in done.stderr.splitlines() if line.startswith("/bin/bash: ")]
    assert not wrong and done.returncode in (0, 127), f"{page[0].place}: the shell says {done.stderr}"
    fields = os.fsdecode(log.read_bytes()).split("\0")
    found: list[Command] = []
    while len(fields) > 1:
        place, folder, count = fields[:3]
        found.append(Command(page[int(place)], tuple(fields[3 : 3 + int(count)]), Path(folder)))
        del fields[: 3 + int(count)]
    return found


def _quoted(snippet: Snippet) -> str:
    # A prompt is no part of the command; a block's last line may lack what ends it.
    lines = [line.removeprefix("$ ") for line in snippet.text.splitlines()]
    return "\n".join(lines)
