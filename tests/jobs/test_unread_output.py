"""Commands whose output nobody reads any more end without a word, and other broken connections are not taken for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_RAISES = """
from drl_dist.common.program import entry_point
def work():
    raise BrokenPipeError("of a server")
entry_point(work)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("jobs/train_digits.py", "--help"),
        ("-m", "datasets_prep.digits", "--help"),
        ("jobs/train_digits.py", "--bogus", "1"),
        # Less than a buffer, which the end of the process alone would write.
        ("-c", "from drl_dist.common.program import entry_point; entry_point(lambda: print('done') or 0)"),
    ],
)
def test_a_command_that_nobody_reads_ends_without_a_word(words: tuple[str, ...], tmp_path: Path) -> None:
    said = tmp_path / "stderr"
    with said.open("w") as stderr:
        is_refused = "--bogus" in words
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if is_refused else stderr,
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=120) == 141
    assert said.read_text() == ""


def test_a_connection_that_breaks_is_an_error() -> None:
    done = subprocess.run([sys.executable, "-c", _RAISES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("BrokenPipeError: of a server\n")
