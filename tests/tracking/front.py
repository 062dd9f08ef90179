"""What stands before an MLflow server in a company: TLS, a token, a path prefix, a redirect, a login page."""

from __future__ import annotations

import http.client
import http.server
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

TOKEN = "token-of-the-test"


def make_certificates(folder: Path) -> Path:
    """ca.pem of an authority, and by it server.pem for 127.0.0.1 and client.pem, in one folder."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"),
        *("-subj", "/CN=Authority of the test"),
    )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
            *("-subj", f"/CN={name}"),
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-out", f"{name}.crt", "-extfile", "names"),
        )
        pem = (folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text()
        (folder / f"{name}.pem").write_text(pem)
    return folder


@dataclass
class Front:
    """Passes requests on to `upstream` if they may pass."""

    upstream: str
    certificates: Path | None = None
    """Folder of `make_certificates`: speak TLS."""
    wants_client_certificate: bool = False
    token: str | None = None
    """Only requests with this bearer token pass; others get 401."""
    prefix: str = ""
    """Path under which the server is; anything else is 404."""
    redirect: tuple[int, str] | None = None
    """Answer everything with this status and this address in front of the path."""
    answers: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    """Answers of its own, by the path."""
    seen: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, "str | None"]])
    """Method, path and Authorization of each request."""

    @property
    def uri(self) -> str:
        scheme = "https" if self.certificates else "http"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}{self.prefix}"

    def __enter__(self) -> Self:
        quiet = type("Server", (http.server.ThreadingHTTPServer,), {"handle_error": lambda *_: None})
        self._server = quiet(("127.0.0.1", 0), type("Bound", (_Handler,), {"front": self}))
        self._server.daemon_threads = True
        if self.certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificates / "server.pem")
            if self.wants_client_certificate:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.certificates / "ca.pem")
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    front: Front
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        front, body = self.front, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        front.seen.append((self.command, self.path, self.headers.get("Authorization")))
        if front.redirect:
            self._answer(front.redirect[0], {"Location": front.redirect[1] + self.path}, b"")
            return
        if front.token and self.headers.get("Authorization") != f"Bearer {front.token}":
            self._answer(401, {"Content-Type": "text/html"}, b"<html>Sign in</html>")
            return
        if not self.path.startswith(front.prefix + "/"):
            self._answer(404, {}, b"nothing here")
            return
        path = self.path.removeprefix(front.prefix)
        if (own := front.answers.get(path.partition("?")[0])) is not None:
            self._answer(own[0], {"Content-Type": "text/html"}, own[1].encode())
            return
        upstream = urlsplit(front.upstream)
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        try:
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
            }
            connection.request(self.command, path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OWN}
        finally:
            connection.close()
        self._answer(answer.status, kept, data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass_on

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test says what matters."""


_HOP = {"host", "connection"}
_OWN = {"transfer-encoding", "connection", "content-length", "date", "server"}
