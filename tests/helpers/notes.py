"""Files of a user beside those of a command, and whether they are still there."""

from __future__ import annotations

import json
from pathlib import Path

from drl_dist.checkpoints.storage import FILES

NOTES = ("notes.txt", ".notes.txt.0123abcd.part", ".swap.part", "00000.json.bak", "99999.json", "photo.tar")


def keep_notes(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NOTES:
        (folder / name).write_text("mine")


def assert_notes(folder: Path) -> None:
    assert {name for name in NOTES if (folder / name).exists()} == set(NOTES)


def checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(json.dumps({}) if name.endswith(".json") else "x")
