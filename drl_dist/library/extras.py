"""Libraries that only some uses need, asked for in one sentence where they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drl_dist.common.errors import UserError


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Turn a package that is not installed into a `UserError` that names the extra which brings it.

    Args:
        extra: of ``pyproject.toml``.
        what: the user wanted, e.g. ``"loading a model"``.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            what,
            got=f"no package {error.name}",
            expected=f"what the extra {extra} installs",
            remedy=f"pip install 'drl_dist[{extra}]'",
        ) from error
