"""HTTP proxies: bypassing them for this machine, and naming them in error messages."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import MutableMapping
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Add this machine's own addresses to the hosts that HTTP libraries reach without a proxy.

    Hosts that the user listed stay. Nothing changes if no proxy is named, or if ``*`` exempts every host already.

    Args:
        environment: changed in place; ``os.environ``, or the environment of a process to be started.
    """
    if not any(environment.get(name) for scheme in ("http", "https") for name in _variables(scheme)):
        return
    # Libraries differ in which spelling they read first, so both get the same value.
    listed = [
        host.strip()
        for name in ("no_proxy", "NO_PROXY")
        for host in environment.get(name, "").split(",")
        if host.strip()
    ]
    if "*" in listed:
        return
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(dict.fromkeys([*listed, *LOOPBACK]))


def proxy_variable(url: str) -> str | None:
    """The environment variable that names a proxy for the URL's scheme, None if there is none or the host is on this
    machine; never its value, which may hold a password."""
    parts = urlsplit(url)
    if parts.hostname in LOOPBACK:
        return None
    return next((name for name in _variables(parts.scheme) if os.environ.get(name)), None)


def through_proxy(url: str) -> str:
    """A phrase that names urllib's proxy, a frequent cause of errors, for their messages; empty if it uses none."""
    parts = urlsplit(url)
    # urllib ignores all_proxy.
    names = [name for name in _variables(parts.scheme)[:2] if os.environ.get(name)]
    if not names or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    return f" through the proxy that {names[0]} names"


def _variables(scheme: str) -> tuple[str, ...]:
    return (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
