"""Take the tables of a run into docs/performance.md, section "On a GPU".

    python -m benchmarks.accelerator.page FOLDER

FOLDER is that of `python -m benchmarks.accelerator`. The report is kept as docs/images/gpu/report.json, beside its
pictures, and the section follows from it; the rest of the page stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.pictures import CURVE, SHEET
from benchmarks.accelerator.report import REPORT, page_of
from drl_dist.common.errors import UserError
from drl_dist.common.program import entry_point
from drl_dist.common.validation import local_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
KEPT = "images/gpu"
"""Folder below ``docs`` of the report and the pictures that the page shows."""
NONE_YET = (
    "There are no figures from a GPU yet, because none was to be had, and the CUDA graph path and the compiled\n"
    "network have not been run there; `make gpu`, in ten minutes on a machine with one, fills this section."
)
_SECTION = re.compile(r"(?<=^## On a GPU\n\n).*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def main(words: Sequence[str]) -> int:
    """Parse, copy, write; the exit status.

    Raises:
        UserError: there is no report of a GPU in the folder.
    """
    parser = argparse.ArgumentParser(
        prog="benchmarks.accelerator.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER")
    given = parser.parse_args(words)
    take(local_of(given.folder, "FOLDER"), DOCS)
    print(DOCS / "performance.md")
    return 0


def take(folder: Path, docs: Path) -> None:
    """Take a run into the page; errors as `main`."""
    path = folder / REPORT
    if not path.is_file():
        raise UserError("FOLDER", got=f"{folder} without {REPORT}", expected="the folder of a run", remedy="name it")
    report = json.loads(path.read_text())
    machine = report["parts"].get("machine", {"rows": []})
    if not any(row["what"] == "gpu" for row in machine["rows"]):
        raise UserError("FOLDER", got="a run without a GPU", expected="one on a GPU", remedy="run make gpu on a GPU")
    kept = docs / KEPT
    kept.mkdir(parents=True, exist_ok=True)
    for name in (REPORT, CURVE, SHEET):
        (kept / name).unlink(missing_ok=True)
        if (folder / name).is_file():
            shutil.copyfile(folder / name, kept / name)
    page = docs / "performance.md"
    page.write_text(with_section(page.read_text(), section(docs)))


def section(docs: Path) -> str:
    """What the section says: the tables of the report that is kept, or that there is none."""
    kept = docs / KEPT / REPORT
    if not kept.is_file():
        return NONE_YET
    report: dict[str, Any] = json.loads(kept.read_text())
    lines = page_of(report, level=3)
    text = "\n".join(["`make gpu` on one GPU, once:", "", *lines])
    return re.sub(r"\]\((?=[\w-]+\.png\))", f"]({KEPT}/", text)


def with_section(page: str, text: str) -> str:
    """The page with another section "On a GPU".

    Raises:
        ValueError: it has no such section.
    """
    if not _SECTION.search(page):
        raise ValueError('no section "On a GPU"')
    return _SECTION.sub(lambda found: text + ("\n\n" if page[found.end() :] else "\n"), page)


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
