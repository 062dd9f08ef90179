"""The page's files: libraries are the ones that were published, and nothing is loaded from elsewhere."""

from __future__ import annotations

import hashlib
import re

from drl_dist.jobs.serve.web.app import PAGE


def test_libraries_are_those_that_the_note_names() -> None:
    note = (PAGE / "vendor/README.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", note, re.MULTILINE)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (PAGE / "vendor").iterdir()}
    del files["README.md"]
    assert dict(rows) == files
    for licence in ("pico.LICENSE.md", "uPlot.LICENSE"):
        assert "MIT License" in (PAGE / "vendor" / licence).read_text()
    assert "Apache License" in (PAGE / "vendor/swagger-ui.LICENSE").read_text()


def test_the_page_names_no_other_host() -> None:
    own = [path for path in PAGE.rglob("*") if path.is_file() and path.parent.name != "vendor"]
    assert len(own) > 10
    for path in own:
        found = set(re.findall(r"https?://[^\s\"'`)]+", path.read_text()))
        # The name of SVG, which nobody fetches.
        assert found <= {"http://www.w3.org/2000/svg"}, path
