"""What the command at hand calls the option with the MLflow server's address, for errors that name it."""

from __future__ import annotations

from collections.abc import Iterable

_NAMES = ("--tracking.uri", "--tracking-uri", "--uri")
_chosen = [_NAMES[0]]


def choose_option(options: Iterable[str]) -> None:
    """Note which of a command's options it is; a command without one changes nothing."""
    known = set(options)
    _chosen[0] = next((name for name in _NAMES if name in known), _chosen[0])


def address_option() -> str:
    """The option's name, as the command line has it; in processes without options that of training."""
    return _chosen[0]
