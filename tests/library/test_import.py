"""What importing the package gives, and what it does not cost."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

import drl_dist
from tests.helpers.forked import real_python
from tests.support import subprocess_environment

PROGRAM = """
import sys
before = set(sys.modules)
import drl_dist
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - {"drl_dist"} - sys.stdlib_module_names
assert not loaded, loaded
assert {*drl_dist.__all__} <= {*dir(drl_dist)} and "torch" not in sys.modules
from drl_dist import *
assert "torch" in sys.modules
print(__version__, load.__name__, train.__name__, Model.__name__)
"""


def test_importing_it_loads_nothing_else(tmp_path: Path) -> None:
    ran = subprocess.run(
        [real_python(), "-c", PROGRAM],
        cwd=tmp_path,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [metadata.version("drl_dist"), "load", "train", "Model"]


def test_its_names_are_documented() -> None:
    assert drl_dist.__doc__ and "docs/library.md" in drl_dist.__doc__
    for name in set(drl_dist.__all__) - {"__version__"}:
        assert getattr(drl_dist, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'drl_dist' has no attribute 'nothing'"):
        _ = drl_dist.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from drl_dist.common import version

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", missing)
    assert version.installed_version() == version.UNKNOWN


def test_a_folder_of_its_name_does_not_hide_it(tmp_path: Path) -> None:
    # As the folder that holds the checkout does.
    (tmp_path / "drl_dist").mkdir()
    environment = {name: value for name, value in subprocess_environment().items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [real_python(), "-c", "import drl_dist; print(drl_dist.load.__name__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.returncode) == ("load\n", 0), ran.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "None 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
    ],
)
def test_threads_spin_shortly_unless_told_otherwise(given: dict[str, str], expected: str, tmp_path: Path) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in subprocess_environment().items() if name not in names}
    program = f"import drl_dist, os, sys; print(*map(os.environ.get, {names}), 'torch' in sys.modules)"
    ran = subprocess.run(
        [real_python(), "-S", "-c", program],
        cwd=tmp_path,
        env=environment | given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == f"{expected} False\n", ran.stderr
