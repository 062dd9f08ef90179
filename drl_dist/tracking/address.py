"""The address of the MLflow server, as the user gives it. Importing it needs no MLflow."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from drl_dist.common.errors import UserError
from drl_dist.tracking.option import address_option


def server_uri(uri: str | None) -> str:
    """`uri`, by default the environment's MLFLOW_TRACKING_URI; checked.

    Raises:
        UserError: no server is named, or this is not the address of one.
    """
    found = (uri or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
    if not found:
        raise UserError(
            "MLflow server",
            got="no address",
            expected="the address of a running server",
            remedy=f"give {address_option()} http://HOST:PORT or set MLFLOW_TRACKING_URI",
        )
    try:
        parts = urlsplit(found)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        parts, is_whole = None, False
    # Options become parameters of the run, which every reader of the page sees.
    if "@" in (found if parts is None else parts.netloc):
        raise UserError(
            "MLflow server",
            got=f"an address with a user or password in it, at {found.rpartition('@')[2]}",
            expected="an address without",
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead",
        )
    if parts is None or parts.scheme not in ("http", "https") or not is_whole:
        raise UserError(
            "MLflow server",
            got=found.partition("?")[0],
            expected="an http:// or https:// address, since workers on other machines use it too",
            remedy="start `mlflow server` and give its address",
        )
    if parts.query or parts.fragment:
        raise UserError(
            "MLflow server",
            got=f"the address of a page, {found.partition('?')[0].partition('#')[0]} with ? or # behind it",
            expected="the server's own address",
            remedy="leave out what begins with ? or #",
        )
    return found.rstrip("/")
