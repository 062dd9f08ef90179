"""Preparation as a program: killed and run again, with several workers, into object storage."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from drl_dist.data.filesystem import Folder
from drl_dist.data.index import open_index
from tests.data.published import encoded, photo, write_fashion
from tests.gcs import GcsEmulator
from tests.helpers.forked import kill, real_process
from tests.support import subprocess_environment

pytestmark = pytest.mark.integration


def command(name: str, *options: object) -> list[str]:
    return [sys.executable, "-m", f"datasets_prep.{name}", *map(str, options)]


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        env=subprocess_environment(environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def children(pid: int) -> list[int]:
    real = real_process(pid)
    return [int(child) for child in Path(f"/proc/{real}/task/{real}/children").read_text().split()]


def test_killed_and_run_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(60):
        data = encoded(photo(number, 150, 150), "PNG")
        (source / f"{number:03d}.png").write_bytes(data[:-500] if number in (7, 30) else data)

    def arguments(out: str, workers: int) -> list[str]:
        return command(
            "folder",
            "--source",
            source,
            "--out",
            tmp_path / out,
            "--resolution",
            320,
            "--shard-size",
            3,
            "--workers",
            workers,
        )

    whole = run(*arguments("whole", 1))
    assert whole.returncode == 0, whole.stderr
    assert "60/60 images" in whole.stderr and "images/s" in whole.stderr

    process = subprocess.Popen(arguments("killed", 2), env=subprocess_environment(), stderr=subprocess.DEVNULL)
    records = tmp_path / "killed" / "_progress"
    try:
        while len(list(records.glob("0*.json"))) < 4:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        workers = children(process.pid)
    finally:
        kill(process)
    assert not (tmp_path / "killed" / "index.parquet").exists()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    finished = len(list(records.glob("0*.json")))
    assert 4 <= finished < 20
    victim = sorted((tmp_path / "killed").glob("*.tar"))[0]
    victim.write_bytes(victim.read_bytes()[:1000])  # As a disk that lost its last blocks would.

    again = run(*arguments("killed", 2))
    assert again.returncode == 0, again.stderr
    assert f"{finished - 1} shards finished" in again.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert "unreadable.json" in contents(tmp_path / "killed")


def test_other_options_do_not_go_on_with_a_killed_preparation(tmp_path: Path) -> None:
    (tmp_path / "_progress").mkdir()
    (tmp_path / "_progress" / "parameters.json").write_text('{"resolution": 8}')
    write_fashion(tmp_path / "source", 3, packed=True)
    result = run(*command("fashion_mnist", "--source", tmp_path / "source", "--out", tmp_path))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "other options" in result.stderr and "Traceback" not in result.stderr


def test_into_object_storage_the_bytes_are_the_same(tmp_path: Path, gcs_bucket: str, gcs_emulator: GcsEmulator) -> None:
    write_fashion(tmp_path / "source", 50, packed=True)
    remote = f"{gcs_bucket}/sets/fashion"

    def prepare_into(out: str) -> str:
        result = run(
            *command(
                "fashion_mnist", "--source", tmp_path / "source", "--out", out, "--shard-size", 16, "--workers", 2
            ),
            environment=gcs_emulator.environment(),
        )
        assert result.returncode == 0, result.stderr
        return result.stderr

    for out in (str(tmp_path / "local"), remote):
        prepare_into(out)
    assert open_index(remote).fingerprint == open_index(str(tmp_path / "local")).fingerprint
    assert {name: Folder(remote).read(name) for name in Folder(remote).sizes()} == contents(tmp_path / "local")
    assert not Folder(f"{remote}/_progress").sizes()
    assert "nothing to do" in prepare_into(remote)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (command("lsun", "--source", "/nowhere", "--out", "/nowhere/out"), "--source: got /nowhere"),
        (command("lsun", "--category", "attic"), "one of church_outdoor, bedroom"),
        (command("digits", "--resolutoin", "8"), "did you mean --resolution"),
        (command("digits", "--out", "gs://no-such-bucket/x"), "no such bucket"),
        (command("digits", "--out", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments: list[str], message: str, gcs_emulator: GcsEmulator) -> None:
    began = time.monotonic()
    result = run(*arguments, environment=gcs_emulator.environment())
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert time.monotonic() - began < 60
