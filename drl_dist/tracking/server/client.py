"""MLflow clients for a server that is known to answer, and its errors as sentences for the user."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from drl_dist.common.errors import UserError
from drl_dist.tracking.server.address import server_uri
from drl_dist.tracking.server.answers import probe, refusal

Item = TypeVar("Item")
Result = TypeVar("Result")

OUTAGE_SECONDS = 12 * 3600.0
"""Longest wait of a trial of a sweep for a server that went away in mid-sweep."""

# What another attempt would not change; everything else may be an outage.
_FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def connect(uri: str | None) -> MlflowClient:
    """A client of the MLflow server at `uri`, by default at MLFLOW_TRACKING_URI, that has just answered.

    How it logs in, and whose certificates it trusts, is what MLflow's own variables say (docs/tracking.md).

    Raises:
        UserError: no server is named, it does not answer within seconds, or it does not let this process in.
    """
    uri = server_uri(uri)
    if (trouble := probe(uri)) is not None:
        raise UserError(
            f"MLflow server {uri}", got=trouble.got, expected="an answer from its API", remedy=trouble.remedy
        )
    return client_of(uri)


def client_of(uri: str) -> MlflowClient:
    """A client that has not tried whether the server answers."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def user_errors(uri: str) -> Iterator[None]:
    """Turn what the server says against a request into a `UserError`."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        # Of files, the client raises what its HTTP library does.
        trouble = refusal(error, uri)
        raise UserError(
            f"MLflow server {uri}", got=trouble.got, expected="the request to succeed", remedy=trouble.remedy
        ) from error


def through_outage(
    uri: str, call: Callable[[], Result], *, seconds: float = OUTAGE_SECONDS, pause: float = 30.0
) -> Result:
    """What a call that speaks to the server returns, repeated while the server is away; a line on stderr says so.

    Args:
        uri: the server.
        call: may be repeated.
        seconds: longest wait.
        pause: between tries, in seconds.

    Raises:
        UserError: from the call, if the server is there or does not come back.
    """
    deadline, is_told = time.monotonic() + seconds, False
    while True:
        try:
            return call()
        except UserError as error:
            if time.monotonic() > deadline or probe(uri) is None:
                raise
            if not is_told:
                print(
                    f"waiting for the server, for {seconds / 3600:.3g} h at most: {error}", file=sys.stderr, flush=True
                )
                is_told = True
            time.sleep(pause)


def is_final(error: MlflowException) -> bool:
    """Whether the server understood the request and will never take it."""
    return isinstance(error, RestException) and error.error_code in _FINAL


def is_missing(error: MlflowException) -> bool:
    """Whether the thing asked for does not exist."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def is_duplicate(error: MlflowException) -> bool:
    """Whether the thing to be made exists already."""
    return error.error_code in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


def every(search: Callable[[str | None], list[Item]]) -> Iterator[Item]:
    """All items of a paged search, which gets the page token."""
    token: str | None = None
    while True:
        page = search(token)
        yield from page
        token = getattr(page, "token", None)
        if not token:
            return


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive parts of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
