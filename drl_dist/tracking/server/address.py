"""The address of the MLflow server, as the user gives it. Importing it needs no MLflow."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from drl_dist.common.errors import UserError
from drl_dist.config.tree import ENVIRONMENT, NO_SERVER


def server_uri(uri: str | None, *, instead: str = "") -> str:
    """`uri`, by default (None, or the word ``environment``) the environment's MLFLOW_TRACKING_URI; checked.

    Args:
        instead: what a command can do without a server, as the end of the message's remedy.

    Raises:
        UserError: no server is named, or this is not the address of one.
    """
    named = None if uri == ENVIRONMENT else uri
    found = (named or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
    if not found:
        raise UserError(
            "MLflow server",
            got="no address",
            expected="the address of a running server",
            remedy=f"give {address_option()} http://HOST:PORT or set MLFLOW_TRACKING_URI{instead}",
        )
    if found == NO_SERVER:
        raise UserError(
            "MLflow server",
            got=NO_SERVER,
            expected="the address of a running server, which this command cannot do without",
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
            remedy=f"{_guess(found) if instead else ''}start `mlflow server` and give its address{instead}",
        )
    if parts.query or parts.fragment:
        raise UserError(
            "MLflow server",
            got=f"the address of a page, {found.partition('?')[0].partition('#')[0]} with ? or # behind it",
            expected="the server's own address",
            remedy="leave out what begins with ? or #",
        )
    return found.rstrip("/")


def _guess(found: str) -> str:
    """What a word that is no address may have meant, where a command can do without a server."""
    meant = difflib.get_close_matches(found.lower(), (NO_SERVER, ENVIRONMENT), n=1)
    return f"did you mean {meant[0]}? Otherwise " if meant else ""


_NAMES = ("--tracking.uri", "--tracking-uri", "--uri")
_chosen = [_NAMES[0]]


def choose_option(options: Iterable[str]) -> None:
    """Note which of a command's options it is; a command without one changes nothing."""
    known = set(options)
    _chosen[0] = next((name for name in _NAMES if name in known), _chosen[0])


def address_option() -> str:
    """The option's name, as the command line has it; in processes without options that of training."""
    return _chosen[0]


USERNAME, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
_LOGIN = (USERNAME, PASSWORD, TOKEN, "MLFLOW_TRACKING_AUTH")
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def access() -> dict[str, str]:
    """The variables of MLflow's client that are set here, with the login of ~/.mlflow/credentials if there is one.

    They hold secrets: hand them over as an argument of a remote function, which Ray keeps in memory, and not as
    variables of a runtime environment, which its dashboard shows and its logs repeat.
    """
    from mlflow.utils.credentials import read_mlflow_creds

    found = {
        name: value
        for name, value in os.environ.items()
        # Where the server is goes along with the config; a run is the driver's choice.
        if (name.startswith("MLFLOW_") or name in _BUNDLES) and name not in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")
    }
    user, password = read_mlflow_creds()
    return found | ({USERNAME: user} if user else {}) | ({PASSWORD: password} if password else {})


def take_access(variables: Mapping[str, str]) -> None:
    """Set what `access` gave on another machine.

    The login is that machine's and no other. Files are where this machine says, if it says anything: a certificate may
    lie elsewhere here.
    """
    for name in _LOGIN:
        os.environ.pop(name, None)
    for name, value in variables.items():
        if name.endswith("_PATH") or name in _BUNDLES:
            os.environ.setdefault(name, value)
        else:
            os.environ[name] = value
