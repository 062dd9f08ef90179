"""A Google Cloud Storage emulator in a process of its own.

To use it, import the fixtures in a conftest.py: ``from tests.gcs import gcs_bucket, gcs_emulator``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support import subprocess_environment

START_SECONDS = 60


@dataclass(frozen=True)
class GcsEmulator:
    """A running emulator."""

    host: str
    """Its address, e.g. ``http://127.0.0.1:9023``."""

    def environment(self) -> dict[str, str]:
        """What gcsfs reads, for this process or a child."""
        return {"STORAGE_EMULATOR_HOST": self.host, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}

    def create_bucket(self) -> str:
        """The name of a fresh bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(
            f"{self.host}/storage/v1/b?project=test",
            method="POST",
            data=json.dumps({"name": name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10):
            return name


@pytest.fixture(scope="session")
def gcs_emulator() -> Iterator[GcsEmulator]:
    """One emulator for the session, its objects in memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gcp_storage_emulator",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--in-memory",
        ],
        env=subprocess_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        host = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(host, timeout=5):
                    break
            except (urllib.error.URLError, OSError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the storage emulator did not start") from error
                time.sleep(0.1)
        yield GcsEmulator(host)
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def gcs_bucket(gcs_emulator: GcsEmulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty bucket, which this process reaches through gs://."""
    for name, value in gcs_emulator.environment().items():
        monkeypatch.setitem(os.environ, name, value)
    return f"gs://{gcs_emulator.create_bucket()}"
