"""Probing an MLflow server with MLflow's own client, and short explanations of what is wrong with its answers."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_BACKOFF_JITTER,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_TRACKING_AUTH,
    MLFLOW_TRACKING_TOKEN,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds, read_mlflow_creds
from mlflow.utils.rest_utils import http_request

from drl_dist.common.proxies import proxy_variable
from drl_dist.data.filesystem import within
from drl_dist.tracking.server.address import address_option

PROBE_SECONDS = 10.0
DEADLINE_SECONDS = 25.0
"""Longest wait for an answer, whatever the address does: finding the host, a plugin that logs in, a slow stream."""
OLDEST_SERVER = (2, 9)
"""From here on a server knows ``models:/NAME@latest``."""
_SEARCH = "/api/2.0/mlflow/experiments/search"
_LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_AUTHORITY = "set MLFLOW_TRACKING_SERVER_CERT_PATH to a PEM file with the certificate of the authority that signed it"

_CLIENT_CERTIFICATE = "set MLFLOW_TRACKING_CLIENT_CERT_PATH to a PEM file with certificate and key"

# The first request here does without them.
_NUMBERS = (
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_BACKOFF_JITTER,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
)


@dataclass(frozen=True)
class Trouble:
    """Why a server cannot be used."""

    got: str
    """What happened."""
    remedy: str
    """What to do about it."""


def probe(uri: str, seconds: float = PROBE_SECONDS) -> Trouble | None:
    """None if an MLflow server answers at `uri` and lets this process in.

    The question is one that needs a login where there is one, which the page /health does not, and goes the way of
    every other request: with the credentials, certificates, plugins and proxies of MLflow's client.

    Args:
        uri: from `drl_dist.tracking.server.client.server_uri`.
        seconds: longest wait for a connection, and for the next byte of an answer.
    """
    try:
        return within(DEADLINE_SECONDS, lambda: _probe(uri, seconds))
    except TimeoutError as error:
        return Trouble(f"no answer ({error}){_through_proxy(uri)}", _address_remedy())


def refusal(error: MlflowException | requests.RequestException, uri: str) -> Trouble:
    """What the client's error says about a request that was not the first one."""
    if isinstance(error, requests.RequestException):
        status = None if error.response is None else error.response.status_code
    else:
        status = error.get_http_status_code()
    if isinstance(error, requests.RequestException) and status is None:
        return _unanswered(error, uri)
    got = str(error).splitlines()[0][:500]
    if status in (401, 403):
        return Trouble(got, f"ask for the right to do this, or log in as somebody who has it ({_LOGIN})")
    return Trouble(got, "look at the server's log, or choose other names")


def _probe(uri: str, seconds: float) -> Trouble | None:
    try:
        for variable in _NUMBERS:
            variable.get()
        answer = _ask(uri, _SEARCH, "POST", seconds, json={"max_results": 1})
    except MlflowException as error:
        return _unanswered(error.__cause__ or error.__context__ or error, uri)
    except OSError as error:  # a credentials file that may not be read, say
        return Trouble(_words(error), _address_remedy())
    except (ValueError, ImportError) as error:
        # A variable with a value that MLflow does not read, or one that wants a package that is not there.
        return Trouble(_words(error), "correct the MLFLOW_ variable, or install what it needs")
    if (trouble := _answered(answer, uri)) is not None:
        return trouble
    version = _version(uri)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return _too_old(version) if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_SERVER else None


def _ask(uri: str, endpoint: str, method: str, seconds: float, **arguments: Any) -> requests.Response:
    """One request as MLflow's client makes it, whatever its answer is."""
    # The client's store reads the credentials before each of its requests too.
    answer = http_request(
        get_default_host_creds(uri),
        endpoint,
        method,
        timeout=seconds,
        max_retries=0,
        raise_on_status=False,
        **arguments,
    )
    assert isinstance(answer, requests.Response)
    return answer


def _version(uri: str) -> str:
    """What the server says its version is; empty if it does not say."""
    answer = _ask(uri, "/version", "GET", PROBE_SECONDS)
    return answer.text.strip() if answer.status_code == 200 and re.match(r"\d+\.\d+", answer.text) else ""


def _answered(answer: requests.Response, uri: str) -> Trouble | None:
    """Why an answer is not the one of an MLflow server that lets us in."""
    status, proxy = answer.status_code, _through_proxy(uri)
    if any(step.status_code in (301, 302, 303) for step in answer.history):
        return _redirected(answer)
    if status == 200 and _is_listing(answer):
        return None
    wants_certificate = status == 400 and "SSL certificate" in answer.text[:1000]  # nginx
    if status in (401, 403) or wants_certificate:
        return _not_let_in(answer)
    if status in (429, 500, 502, 503, 504):
        return Trouble(f"status {status}{proxy}", "wait until the server is up, look at its log, or correct the URI")
    if status == 404 and (version := _version(uri)):
        return _too_old(version)
    return Trouble(f"status {status} from something that is not an MLflow server{proxy}", _address_remedy())


def _redirected(answer: requests.Response) -> Trouble:
    # Such a redirect turns what is to be written into something to be read.
    target = urlsplit(answer.url)
    place = f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path.removesuffix(_SEARCH)}"
    if isinstance(_json(answer), dict):  # MLflow's, though perhaps of a question that lost its words on the way
        return Trouble(f"a redirect to {place}", "give the address that it redirects to")
    return Trouble(
        f"a redirect to {place}, as of a proxy that wants a login",
        f"log in ({_LOGIN}, or the plugin of MLflow that the proxy needs), or correct the URI",
    )


def _not_let_in(answer: requests.Response) -> Trouble:
    status = answer.status_code
    if status == 400:
        return Trouble("status 400, since the server wants a certificate of the client", _CLIENT_CERTIFICATE)
    if "Host header" in answer.text[:1000]:
        return Trouble(
            f"status {status}, since the server does not serve this host name",
            "start it with --allowed-hosts and this name, or use a name that it serves",
        )
    # What http_request takes, in its order.
    user, password = read_mlflow_creds()
    if user and password:
        used = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or ~/.mlflow/credentials hold"
    elif MLFLOW_TRACKING_TOKEN.get():
        used = "MLFLOW_TRACKING_TOKEN holds"
    elif MLFLOW_TRACKING_AUTH.get():
        used = f"MLflow's plugin {MLFLOW_TRACKING_AUTH.get()} (MLFLOW_TRACKING_AUTH) gives"
    elif user or password:
        missing = "MLFLOW_TRACKING_PASSWORD" if user else "MLFLOW_TRACKING_USERNAME"
        return Trouble(f"status {status}, since {missing} is not set", f"set {missing}")
    else:
        return Trouble(f"status {status}, since it wants a login and none is set", f"set {_LOGIN}")
    refusal = "refuses the login" if status == 401 else "does not allow what is asked with the login"
    return Trouble(f"status {status}: the server {refusal} that {used}", "correct it, or ask for the right")


def _unanswered(error: BaseException, uri: str) -> Trouble:
    """What went wrong before there was an answer."""
    chain, proxy = _chain(error), _through_proxy(uri)
    if any(isinstance(one, requests.exceptions.ProxyError) for one in chain):
        return Trouble(
            f"no answer{proxy or ' through a proxy'} ({_words(chain[-1])})",
            "correct that variable, or put the server's host into NO_PROXY",
        )
    if (trouble := _tls_trouble(chain)) is not None:
        return trouble
    if any(isinstance(one, requests.exceptions.InvalidHeader | UnicodeError) for one in chain):
        # What exactly is wrong with it would show it.
        return Trouble(
            "a login that no request can carry, as one with a line break or letters beyond Latin-1",
            "correct MLFLOW_TRACKING_TOKEN",
        )
    if isinstance(error, MlflowException | requests.exceptions.InvalidURL):
        return Trouble(_words(error), "correct the address, or the MLFLOW_TRACKING_ variables")
    kinds = [type(one).__name__ for one in chain]
    why = next((kind for kind in kinds if "Timeout" in kind), kinds[0])
    return Trouble(f"no answer ({why}){proxy}", _address_remedy())


def _tls_trouble(chain: list[BaseException]) -> Trouble | None:
    texts = " ".join(str(one) for one in chain)
    if "invalid path" in texts or "Could not find the TLS" in texts:
        return Trouble(
            "a certificate file that is not there",
            "correct MLFLOW_TRACKING_SERVER_CERT_PATH, MLFLOW_TRACKING_CLIENT_CERT_PATH or REQUESTS_CA_BUNDLE",
        )
    if "CERTIFICATE_VERIFY_FAILED" in texts:
        return _not_trusted(chain)
    # Since TLS 1.3 a server that misses a certificate may just close the connection.
    if "CERTIFICATE_REQUIRED" in texts or "HANDSHAKE_FAILURE" in texts or "EOF occurred" in texts:
        return Trouble(
            "a TLS handshake that failed, as where the server wants a certificate of the client", _CLIENT_CERTIFICATE
        )
    if "WRONG_VERSION_NUMBER" in texts or "record layer failure" in texts.lower():
        return Trouble("an answer that is no TLS", "write the address with http:// instead of https://")
    if any(isinstance(one, ssl.SSLError) for one in chain):
        return Trouble(
            f"a TLS error ({_words(chain[-1])})",
            "look at MLFLOW_TRACKING_SERVER_CERT_PATH and MLFLOW_TRACKING_CLIENT_CERT_PATH, which must name PEM files",
        )
    return None


def _not_trusted(chain: list[BaseException]) -> Trouble:
    reason = next((one.verify_message for one in chain if isinstance(one, ssl.SSLCertVerificationError)), "")
    got = f"a TLS certificate that is not trusted ({reason or 'verification failed'})"
    if "expired" in reason or "not yet valid" in reason:
        return Trouble(got, "renew the server's certificate, or correct this machine's clock")
    if "mismatch" in reason:
        return Trouble(got, "use a name of the server that its certificate holds")
    return Trouble(got, _AUTHORITY)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it was made of, the first cause last."""
    found = [error]
    while True:
        last = found[-1]
        nested = getattr(last, "reason", None), *last.args, last.__cause__, last.__context__
        below = next((one for one in nested if isinstance(one, BaseException) and one not in found), None)
        if below is None:
            return found
        found.append(below)


def _address_remedy() -> str:
    return f"start the server or correct the URI ({address_option()} or MLFLOW_TRACKING_URI)"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _through_proxy(uri: str) -> str:
    """Words for the proxy on the way, which is often what is wrong; empty if there is none."""
    if requests.utils.should_bypass_proxies(uri, no_proxy=None):
        return ""
    variable = proxy_variable(uri)
    return f" through the proxy that {variable} names" if variable else ""


def _is_listing(answer: requests.Response) -> bool:
    """Whether this is MLflow's answer; it leaves empty lists out."""
    listing = _json(answer)
    return isinstance(listing, dict) and (not listing or "experiments" in listing)


def _json(answer: requests.Response) -> object:
    try:
        return json.loads(answer.text)
    except ValueError:
        return None


def _too_old(version: str) -> Trouble:
    return Trouble(
        f"an MLflow server of version {version.strip()[:20]}",
        f"use a server of version {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or newer, best that of this client",
    )
