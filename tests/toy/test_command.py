"""``python -m drl_dist.toy``, end to end in a tiny size, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from drl_dist.errors import UserError
from drl_dist.toy.__main__ import main
from tests.support import ROOT, subprocess_environment

EXTRAS = ["ray", "mlflow", "fsspec", "webdataset", "pyarrow", "safetensors", "pydantic", "tyro", "rich", "sklearn"]
"""What the command does without; a None in sys.modules makes an import fail as if it were not installed."""
PROGRAM = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))
runpy.run_module("drl_dist.toy", run_name="__main__")
"""


def toy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=subprocess_environment(),
    )


def test_it_draws_and_reports_without_the_extras(tmp_path: Path) -> None:
    ran = toy("rings", "--steps", "2", "--lengthen", "1", "--out", str(tmp_path / "new" / "folder"))
    assert ran.returncode == 0, ran.stderr
    pictures = sorted((tmp_path / "new" / "folder").iterdir())
    assert [path.name for path in pictures] == ["rings_comparison.png", "rings_levels.png"]
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert str(path) in ran.stdout
    (numbers,) = re.findall(r"total variation from the exact one +([\d.]+) +([\d.]+)", ran.stdout)
    # Two steps learn nothing.
    assert all(0.2 < float(number) <= 1 for number in numbers)
    for what in ("recovery, training: 2/2 steps", "short-run, long runs: 60/60 chain steps"):
        assert re.search(rf"{what}, .*steps/s, .* left", ran.stderr), ran.stderr


def test_bad_input_is_one_sentence_and_exit_status_2(tmp_path: Path) -> None:
    ran = toy("moons", "--out", str(tmp_path / "out"))
    assert ran.returncode == 2
    assert ran.stderr == (
        "data set: got moons, expected one of checkerboard, rings, mixture, spirals; choose one of these.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "option --steps: got 0, expected 1 to 1000000; correct the option."),
        (["--steps", "many"], "command line: got argument --steps: invalid int value: 'many', expected options"),
        (["--lengthen", "0"], "option --lengthen: got 0, expected 1 to 1000; correct the option."),
        (["--seed", "-1"], r"option --seed: got -1, expected a number in \[0, 2\*\*63\); correct the option."),
        (["--stepz", "3"], "command line: got unrecognized arguments: --stepz 3, expected options as --help"),
    ],
)
def test_options_that_cannot_be_used(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        main(["rings", "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"option --out: got .*/file/below \(Not a directory\), expected a folder that"):
        main(["rings", "--out", str(tmp_path / "file" / "below")])
    # /proc exists and is a folder, but nobody, root included, can make a file there.
    with pytest.raises(UserError, match=r"option --out: got /proc \(.*\), expected a folder that can be written"):
        main(["rings", "--out", "/proc"])


def test_without_matplotlib_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"matplotlib: got no such package, .*; pip install matplotlib"):
        main(["rings", "--out", str(tmp_path / "out")])
