"""The commands of ``python -m drl_dist``: their list, their help, and words that are none."""

from __future__ import annotations

import subprocess

import pytest

from drl_dist.common.errors import UserError
from drl_dist.console.command import COMMANDS, overview, run
from tests.helpers.forked import real_python
from tests.support import subprocess_environment


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, status in ((["--help"], 0), (["-h"], 0), ([], 2)):
        assert run(words) == status
        assert capsys.readouterr().out == overview() + "\n"
    assert all(f"  {name} " in overview() for name in COMMANDS)
    assert run(["--version"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["statsu"], r"command of python -m drl_dist: got statsu, expected one of up, .*; did you mean status\?"),
        (["xyz"], r"got xyz, .*; choose one of these\.$"),
        (["status", "--run"], "option: got --run"),
        (["list"], r"command line: got no STORAGE, expected STORAGE; add STORAGE"),
        (["delete"], "got no RUN, expected RUN"),
        (["compare"], "got no RUN, OTHER, expected RUN, OTHER"),
        (["compare", "/a"], "command line: got one run, expected two; name the other one"),
        (["status", "/a", "/b"], "option: got /b"),
        (["status", "gs://"], "got gs://, without a bucket"),
    ],
)
def test_words_that_cannot_be_used(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(words)


@pytest.mark.integration
def test_help_needs_no_large_library_and_a_mistake_is_one_sentence() -> None:
    program = (
        "import sys; from drl_dist.console.command import run\n"
        "for name in ('status', 'delete'):\n"
        "    try: run([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'mlflow', 'ray', 'fsspec'} & sys.modules.keys()), file=sys.stderr)"
    )
    ran = subprocess.run(
        [real_python(), "-c", program], env=subprocess_environment(), capture_output=True, text=True, check=True
    )
    assert "python -m drl_dist delete" in ran.stdout and "--keep-tracking" in ran.stdout
    assert ran.stderr == "[]\n"
    words = [real_python(), "-m", "drl_dist", "statsu"]
    ran = subprocess.run(words, env=subprocess_environment(), capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1) and "did you mean status?" in ran.stderr
