"""The way to an MLflow server: found out in seconds whether it answers, and errors told in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import requests

from drl_dist.errors import UserError

# By default a request to a server that went away is repeated for minutes. Ours are repeated by the spool, or fail; what
# the user sets counts. mlflow reads these at each request.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

Item = TypeVar("Item")

PROBE_SECONDS = 10.0
REMEDY = "start the server or correct the URI (--tracking.uri or MLFLOW_TRACKING_URI)"
# What another attempt would not change; everything else may be an outage.
_FINAL = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def connect(uri: str | None) -> MlflowClient:
    """A client of the MLflow server at `uri`, by default at MLFLOW_TRACKING_URI, that has just answered.

    Raises:
        UserError: no server is named, or it does not answer within seconds.
    """
    uri = server_uri(uri)
    if (trouble := probe(uri)) is not None:
        raise UserError(f"MLflow server {uri}", got=trouble, expected="an answer from its /health page", remedy=REMEDY)
    return client_of(uri)


def server_uri(uri: str | None) -> str:
    """`uri`, by default the environment's MLFLOW_TRACKING_URI; errors as `connect`."""
    found = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not found:
        raise UserError(
            "MLflow server",
            got="no address",
            expected="the address of a running server",
            remedy="give --tracking.uri http://HOST:PORT or set MLFLOW_TRACKING_URI",
        )
    if not found.startswith(("http://", "https://")):
        raise UserError(
            "MLflow server",
            got=found,
            expected="an http:// or https:// address, since workers on other machines use it too",
            remedy="start `mlflow server` and give its address",
        )
    host = urlsplit(found).netloc
    if "@" in host:
        # Options become parameters of the run, which every reader of the page sees.
        raise UserError(
            "MLflow server",
            got=f"an address with a user or password in it, at {host.rpartition('@')[2]}",
            expected="an address without",
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead",
        )
    return found.rstrip("/")


def client_of(uri: str) -> MlflowClient:
    """A client that has not tried whether the server answers."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def probe(uri: str, seconds: float = PROBE_SECONDS) -> str | None:
    """None if an MLflow server answers at `uri`, else what happened instead."""
    try:
        answer = requests.get(f"{uri}/health", timeout=seconds)
    except requests.RequestException as error:
        return f"no answer ({type(error).__name__})"
    if answer.status_code != 200 or answer.text.strip() != "OK":
        return f"status {answer.status_code} from something that is not an MLflow server"
    return None


@contextmanager
def user_errors(uri: str) -> Iterator[None]:
    """Turn what the server says against a request into a `UserError`."""
    try:
        yield
    except MlflowException as error:
        raise UserError(
            f"MLflow server {uri}",
            got=str(error).splitlines()[0],
            expected="the request to succeed",
            remedy="look at the server's log, or choose other names",
        ) from error


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
