"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

UNKNOWN = "0+unknown"
"""Of a checkout that is used without being installed."""


def installed_version() -> str:
    """The version that pip knows, or `UNKNOWN`."""
    try:
        return version("drl_dist")
    except PackageNotFoundError:
        return UNKNOWN
