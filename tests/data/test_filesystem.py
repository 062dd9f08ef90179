"""Storage that does not answer ends in one sentence, soon."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drl_dist.common.errors import UserError
from drl_dist.data import filesystem
from drl_dist.data.filesystem import Folder, check_reachable, open_filesystem, within, write_local
from drl_dist.data.index import open_index
from tests.data.sets import write_set
from tests.gcs import GcsEmulator


def use_emulator(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


@pytest.mark.parametrize("url", ["ftp://host/data", "http://host/data", "pipe:ls://x", ""])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"a path, file://, gs:// or s3://"):
        open_filesystem(url)


def test_plain_paths_and_file_urls_are_the_same(tmp_path: Path) -> None:
    for url in (str(tmp_path), f"file://{tmp_path}", f"{tmp_path}/"):
        assert Folder(url).local == tmp_path
    Folder(f"file://{tmp_path}/new/deep").write("a", b"hello")
    assert Folder(str(tmp_path / "new" / "deep")).read("a", 1, 3) == b"el"
    assert Folder(str(tmp_path / "new" / "deep")).sizes() == {"a": 5}
    assert Folder("gs://bucket/x").local is None


def test_a_local_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_local(tmp_path / "a", b"one")
    write_local(tmp_path / "a", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"writing"):
        write_local(tmp_path / "folder", b"three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]


def test_within_passes_on_results_and_errors_and_gives_up() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(TimeoutError, match=r"no answer"):
        within(0.05, lambda: time.sleep(1))


@pytest.mark.integration
def test_object_storage_keeps_files(gcs_bucket: str) -> None:
    folder = Folder(f"{gcs_bucket}/a/b")
    assert folder.sizes() == {}
    folder.write("one", b"hello")
    folder.write("sub.tar", bytes(3 * 2**20))
    Folder(f"{gcs_bucket}/a/b/c").write("deeper", b"x")
    assert folder.sizes() == {"one": 5, "sub.tar": 3 * 2**20}
    assert (folder.read("one"), folder.read("one", 1, 3)) == (b"hello", b"el")
    folder.write("one", b"again")
    assert folder.read("one") == b"again"
    folder.remove("one")
    folder.remove("one")
    with pytest.raises(FileNotFoundError):
        folder.read("one")


@pytest.mark.integration
def test_a_bucket_that_is_not_there_is_named(gcs_emulator: GcsEmulator, gcs_bucket: str) -> None:
    check_reachable(gcs_bucket)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"bucket no-such-bucket.*no such bucket"):
        open_index("gs://no-such-bucket/data")
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_an_address_without_a_server_is_reported_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        use_emulator(monkeypatch, f"http://127.0.0.1:{probe.getsockname()[1]}")
        monkeypatch.setattr(filesystem, "REACH_DEADLINE", 5.0)
        began = time.monotonic()
        with pytest.raises(UserError, match=r"storage gs://bucket/data.*expected one within"):
            open_index("gs://bucket/data")
    assert time.monotonic() - began < 15


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_an_address_that_never_answers_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "REACH_DEADLINE", 1.0)
    with silent_server() as host:
        use_emulator(monkeypatch, host)
        began = time.monotonic()
        with pytest.raises(UserError, match=r"gs://bucket/data: got no answer, expected one within 1 s; check the"):
            check_reachable("gs://bucket/data")
        assert time.monotonic() - began < 5


class Stalling(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the emulator, but keeps the first few downloads waiting."""

    upstream = ""
    stalls = 0

    def do_GET(self) -> None:
        import urllib.request

        if "alt=media" in self.path and Stalling.stalls > 0:
            Stalling.stalls -= 1
            time.sleep(2.0)
            return
        kept = {name: value for name, value in self.headers.items() if name.lower() == "range"}
        with urllib.request.urlopen(urllib.request.Request(self.upstream + self.path, headers=kept)) as answer:
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test says what matters."""


@pytest.mark.integration
@pytest.mark.parametrize(("stalls", "succeeds"), [(2, True), (9, False)])
def test_a_stalled_read_is_tried_again_a_few_times(
    stalls: int, succeeds: bool, gcs_emulator: GcsEmulator, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(f"{gcs_bucket}/toy")
    Stalling.upstream, Stalling.stalls = gcs_emulator.host, stalls
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(filesystem, "REQUEST_DEADLINE", 0.8)
        monkeypatch.setattr(filesystem, "RETRY_PAUSES", (0.05, 0.05))
        folder = Folder(f"{gcs_bucket}/toy")
        if succeeds:
            assert len(folder.read("index.parquet")) > 100
            assert Stalling.stalls == 0
        else:
            with pytest.raises(UserError, match=r"got no answer, expected the file's bytes"):
                folder.read("index.parquet")
            assert Stalling.stalls == 6
    finally:
        server.shutdown()
        server.server_close()


def test_s3_is_opened_without_asking_anybody() -> None:
    opened, path = open_filesystem("s3://bucket/a/b/")
    assert type(opened).__name__ == "S3FileSystem" and path == "bucket/a/b"
    assert os.environ.get("STORAGE_EMULATOR_HOST") is None
