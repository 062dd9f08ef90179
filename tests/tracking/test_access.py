"""MLflow behind what companies put before it: reached as by its own client, refused in one sentence."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl_dist.common.errors import UserError
from drl_dist.config.tree import RunConfig
from drl_dist.data.shards import encode_png
from drl_dist.jobs.common.options import parse_options
from drl_dist.jobs.sample.options import SampleOptions
from drl_dist.jobs.train.options import parse_train
from drl_dist.localhost import MlflowServer
from drl_dist.tracking.curves import CurvesOptions
from drl_dist.tracking.registry import resolve_model
from drl_dist.tracking.runs import open_run
from drl_dist.tracking.server import address as option
from drl_dist.tracking.server.address import access, server_uri, take_access
from drl_dist.tracking.server.client import connect
from drl_dist.tracking.tracker import Tracker
from tests.support import subprocess_environment
from tests.tracking.front import TOKEN, Front, make_certificates

PASSWORD = "secret-of-the-test"
NAMES = ("USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH", "CLIENT_CERT_PATH", "INSECURE_TLS", "AUTH", "URI")


@pytest.fixture(autouse=True)
def no_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login of this machine's own."""
    for name in NAMES:
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class PasswordServer(MlflowServer):
    """An MLflow server that wants a password."""

    def command(self) -> list[str]:
        return [*super().command(), "--app-name=basic-auth"]

    def server_environment(self) -> dict[str, str]:
        config = self.folder / "auth.ini"
        config.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"admin_password = {PASSWORD}\ndatabase_uri = sqlite:///{self.folder / 'auth.db'}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        return super().server_environment() | {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "key-of-the-test",
        }


@pytest.fixture(scope="module")
def password_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PasswordServer]:
    with PasswordServer(tmp_path_factory.mktemp("password")) as server:
        yield server


def refused(uri: str) -> str:
    """The sentence that `connect` refuses a server with."""
    with pytest.raises(UserError) as caught:
        connect(uri)
    return str(caught.value)


def track_and_fetch(uri: str, make_checkpoint: Callable[[int], Path], tmp_path: Path) -> None:
    """The whole way of a run: opened, told numbers, a picture and a checkpoint; the model brought back."""
    run_id = open_run(uri, "access", "run-1", {"a": 1})
    tracker = Tracker(uri, run_id, tmp_path / "spools")
    tracker.log_metrics(1, {"loss": 0.5})
    tracker.log_image("samples", 1, encode_png(np.zeros((3, 8, 8), np.uint8)))
    tracker.register_checkpoint("access", 1, make_checkpoint(1), {})
    assert tracker.close("FINISHED", 60)
    model = resolve_model("models:/access@latest", uri, tmp_path / "models")
    assert (model.step, model.run_id) == (1, run_id)
    assert connect(uri).get_metric_history(run_id, "main/loss")[0].value == 0.5


@pytest.mark.integration
def test_a_password_lets_in_and_is_never_told(
    password_server: PasswordServer,
    make_checkpoint: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = password_server.uri
    assert "status 401, since it wants a login and none is set" in refused(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    assert "MLFLOW_TRACKING_PASSWORD is not set" in refused(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-secret")
    told = refused(uri)
    assert "status 401" in told and "MLFLOW_TRACKING_PASSWORD" in told and "wrong-secret" not in told

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    track_and_fetch(uri, make_checkpoint, tmp_path)

    # The same from the file of MLflow's client, which processes on other machines lack.
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = {PASSWORD}\n"
    )
    connect(uri)
    handed = access()
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of another server")
    take_access(handed)
    connect(uri)
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ


@pytest.mark.integration
def test_who_may_only_read_is_told_so(password_server: PasswordServer, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = password_server.uri
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    from mlflow.server.auth.client import AuthServiceClient

    AuthServiceClient(uri).create_user("reader", "password-of-the-reader")
    run_id = open_run(uri, "read", "run", {})
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "password-of-the-reader")
    connect(uri).get_run(run_id)
    with pytest.raises(UserError, match=r"(?s)Permission denied.*ask for the right.*MLFLOW_TRACKING_USERNAME"):
        open_run(uri, "read", "run", {"b": 2})


@pytest.mark.integration
def test_own_certificate_token_and_path(
    mlflow_server: MlflowServer,
    certificates: Path,
    make_checkpoint: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Front(mlflow_server.uri, certificates, token=TOKEN, prefix="/tools/mlflow") as front:
        told = refused(front.uri)
        assert "certificate that is not trusted" in told and "set MLFLOW_TRACKING_SERVER_CERT_PATH" in told
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/nonesuch.pem")
        assert "a certificate file that is not there" in refused(front.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificates / "ca.key"))
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in refused(front.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificates / "ca.pem"))
        assert "wants a login and none is set" in refused(front.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "wrong-token")
        told = refused(front.uri)
        assert "MLFLOW_TRACKING_TOKEN" in told and "wrong-token" not in told
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
        assert "status 404" in refused(front.uri.removesuffix("/tools/mlflow"))
        # A path under which nothing but a 404 is, to the same server.
        track_and_fetch(front.uri, make_checkpoint, tmp_path)
        assert {authorization for _, path, authorization in front.seen if "artifacts" in path} == {f"Bearer {TOKEN}"}
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        connect(front.uri)


@pytest.mark.integration
def test_a_certificate_of_the_client(
    mlflow_server: MlflowServer, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificates / "ca.pem"))
    with Front(mlflow_server.uri, certificates, wants_client_certificate=True) as front:
        assert "set MLFLOW_TRACKING_CLIENT_CERT_PATH" in refused(front.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(certificates / "client.pem"))
        connect(front.uri)
        assert "no answer" in refused(front.uri.replace("https", "http"))
    assert "an answer that is no TLS" in refused(mlflow_server.uri.replace("http", "https"))


def self_signed(folder: Path, days: int) -> Path:
    """A folder with a server.pem for 127.0.0.1 that signs itself."""
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for words in (
        ("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "csr", "-subj", "/CN=s"),
        ("x509", "-req", "-in", "csr", "-signkey", "key", "-days", str(days), "-out", "crt", "-extfile", "names"),
    ):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
    (folder / "server.pem").write_text((folder / "crt").read_text() + (folder / "key").read_text())
    return folder


@pytest.mark.slow
def test_certificates_that_sign_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {SEARCH: (200, "{}"), "/version": (200, "3.1.0")}
    sound = self_signed(tmp_path / "with space", 2)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(sound / "crt"))
    with Front("", certificates=sound, answers=answers) as front:
        connect(front.uri)
        told = refused(front.uri.replace("127.0.0.1", "localhost"))
        assert "Hostname mismatch" in told and "use a name of the server that its certificate holds" in told
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        told = refused(front.uri)
        assert "MLFLOW_TRACKING_INSECURE_TLS" in told and "correct the address, or the MLFLOW_TRACKING_" in told
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        connect(front.uri)
        monkeypatch.delenv("MLFLOW_TRACKING_INSECURE_TLS")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(sound / "crt"))
        connect(front.uri)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    old = self_signed(tmp_path / "old", -1)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(old / "crt"))
    with Front("", certificates=old, answers=answers) as front:
        told = refused(front.uri)
        assert "certificate has expired" in told and "renew the server's certificate" in told


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MLFLOW_TRACKING_INSECURE_TLS", "yes", "MLFLOW_TRACKING_INSECURE_TLS value must be one of"),
        ("MLFLOW_TRACKING_AWS_SIGV4", "true", "No module named 'requests_auth_aws_sigv4'"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "long", "MLFLOW_HTTP_REQUEST_TIMEOUT"),
        ("MLFLOW_TRACKING_TOKEN", "secret\n", "got a login that no request can carry"),
        ("MLFLOW_TRACKING_TOKEN", "secret…", "correct MLFLOW_TRACKING_TOKEN"),
    ],
)
def test_variables_that_the_client_cannot_use(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with Front("", answers={SEARCH: (200, "{}"), "/version": (200, "3.1.0")}) as front:
        told = refused(front.uri)
    assert sentence in told and "secret" not in told and "start the server" not in told


@pytest.mark.integration
def test_redirects(mlflow_server: MlflowServer) -> None:
    with Front("", redirect=(308, mlflow_server.uri)) as front:
        connect(front.uri)
    with Front("", redirect=(302, mlflow_server.uri)) as front:
        assert f"a redirect to {mlflow_server.uri}, expected" in refused(front.uri)
    login = {"/api/2.0/mlflow/experiments/search": (200, "<html>Log in</html>")}
    with Front("", answers=login) as page, Front("", redirect=(302, page.uri)) as front:
        assert "as of a proxy that wants a login" in refused(front.uri)


SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({SEARCH: (200, "<html>Welcome</html>")}, "status 200 from something that is not an MLflow server"),
        ({SEARCH: (404, "no"), "/version": (404, "")}, "status 404 from something that is not an MLflow server"),
        ({SEARCH: (404, "no"), "/version": (200, "1.20.0")}, "an MLflow server of version 1.20.0"),
        ({SEARCH: (200, "{}"), "/version": (200, "2.1.1")}, "an MLflow server of version 2.1.1"),
        ({SEARCH: (400, "400 No required SSL certificate was sent")}, "set MLFLOW_TRACKING_CLIENT_CERT_PATH"),
        ({SEARCH: (503, "")}, "got status 503, expected"),
        ({SEARCH: (403, "Invalid Host header - possible DNS rebinding attack")}, "--allowed-hosts"),
        ({SEARCH: (200, "[1]")}, "status 200 from something that is not an MLflow server"),
    ],
)
def test_what_answers_in_its_place(answers: dict[str, tuple[int, str]], sentence: str) -> None:
    with Front("", answers=answers) as front:
        assert sentence in refused(front.uri)


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("http://user:pass-word@host:5000", "an address with a user or password in it, at host:5000"),
        ("postgresql://user:pass-word@host/db", "an address with a user or password in it, at host/db"),
        ("http://host:5000/#/experiments/1", "the address of a page, http://host:5000/ with"),
        ("http://host/?token=pass-word", "the address of a page, http://host/ with"),
        ("http://host:port", "got http://host:port, expected an http://"),
        ("http://[::1", "got http://[::1, expected an http://"),
        ("http://", "got http://, expected an http://"),
    ],
)
def test_addresses_that_are_none(uri: str, sentence: str) -> None:
    told = refused(uri)
    assert sentence in told and "pass-word" not in told


@pytest.mark.parametrize(
    ("uri", "meant"), [("non", "none"), ("NONE", "none"), ("enviroment", "environment"), ("http//host", None)]
)
def test_a_mistyped_word_is_named_where_no_server_is_needed(uri: str, meant: str | None) -> None:
    with pytest.raises(UserError) as caught:
        server_uri(uri, instead=", or --tracking.uri none to have files")
    told = str(caught.value)
    assert told.endswith("start `mlflow server` and give its address, or --tracking.uri none to have files.")
    assert (f"; did you mean {meant}? Otherwise start" in told) == (meant is not None)
    # A command that needs a server offers no other way.
    assert refused(uri).endswith("; start `mlflow server` and give its address.")


@pytest.mark.parametrize(
    ("options", "name"),
    [(SampleOptions(), "--tracking-uri"), (CurvesOptions(), "--uri"), (RunConfig, "--tracking.uri")],
)
def test_the_option_is_called_what_the_command_calls_it(
    options: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(option, "_chosen", ["--nonesuch"])
    if options is RunConfig:
        parse_train("digits", ["--dry-run"])
    else:
        parse_options(type(options), options, [], description="")
    assert f"give {name} http://HOST:PORT or set MLFLOW_TRACKING_URI" in refused("")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert f"correct the URI ({name} or MLFLOW_TRACKING_URI)" in refused(f"http://127.0.0.1:{port}")


@pytest.mark.slow
def test_a_server_that_says_nothing_is_given_up_within_half_a_minute() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert "got no answer (ReadTimeoutError)" in refused(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - began < 30


def test_files_of_another_machine_are_where_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/driver/ca.pem")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "new")
    handed = access()
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/worker/ca.pem")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "old")
    take_access(handed)
    assert os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"] == "/worker/ca.pem"
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "new"


PROXIES = {"HTTP_PROXY": "http://user:pass-word@127.0.0.1:9", "NO_PROXY": "example.com"}


@pytest.mark.integration
def test_a_server_on_this_machine_is_reached_without_the_proxy(tmp_path: Path) -> None:
    code = f"""
import os
from drl_dist.localhost import MlflowServer
from drl_dist.tracking.server.client import connect
with MlflowServer({str(tmp_path)!r}, start_seconds=120) as server:
    print(connect(server.uri).search_experiments()[0].name, os.environ["NO_PROXY"])
    port = server.port
try:
    connect("http://mlflow.invalid:5000")
except Exception as error:
    print(error)
"""
    environment = {name: value for name, value in subprocess_environment().items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=environment | PROXIES,
        capture_output=True,
        text=True,
        timeout=200,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "Default example.com,127.0.0.1,localhost,::1", done.stdout + done.stderr
    assert re.search("no answer through the proxy that HTTP_PROXY names .*NO_PROXY", lines[1]), lines[1]
    assert "pass-word" not in done.stdout + done.stderr
