"""What tests of several areas need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

NEEDED = {
    "chromium": Path("/usr/bin/chromium"),
    "dataset-fashion-mnist": Path("/usr/share/datasets/fashion-mnist"),
}
"""Debian packages that tests use, and where each is found."""


def require(package: str) -> Path:
    """The path of a Debian package's program or folder; without it the test is skipped, or fails under
    ``DRL_REQUIRE_ALL=1``, so that nothing is skipped unnoticed where everything should be there."""
    path = NEEDED[package]
    if path.exists():
        return path
    if os.environ.get("DRL_REQUIRE_ALL") == "1":
        pytest.fail(f"{package} is not installed (no {path}); run `apt-get install {package}`")
    pytest.skip(f"{package} is not installed (no {path})")


def subprocess_environment(*parts: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a child that imports the project, without the user's own servers, plus `parts`."""
    foreign = ("RAY_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    for part in parts:
        environment |= part
    return environment
