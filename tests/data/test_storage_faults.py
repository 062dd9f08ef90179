"""Object storage on a bad day: the same bytes in the end, or one sentence that names the object."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.config.tree import LoaderConfig
from drl_dist.data import filesystem
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.stream import ShardStream
from tests.data.sets import write_set
from tests.faulty_proxy import Fault, FaultyProxy
from tests.gcs import GcsEmulator
from tests.support import subprocess_environment

pytestmark = pytest.mark.integration

COUNTS = (8, 8, 8)
SHARD = "toy-train-00001.tar"


def take(index: ShardIndex, folder: Path) -> list[Batch]:
    loader = LoaderConfig(cache_dir=str(folder), window_shards=1, prefetch_batches=1)
    with ShardStream(index, seed=1, batch_size=4, loader=loader) as stream:
        return list(islice(stream, 6))


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ("error 503", 2),
        ("reset", 2),
        ("short body", 2),
        ("stall", 1),
        ("slow", 1),
        ("truncated", 1),
        ("flipped bit", 1),
    ],
)
def test_a_fault_that_passes_changes_nothing(
    fault: Fault, times: int, proxy: FaultyProxy, gcs_bucket: str, tmp_path: Path
) -> None:
    local, index = write_set(str(tmp_path / "local"), COUNTS), write_set(f"{gcs_bucket}/toy", COUNTS)
    rule = proxy.add("GET", SHARD, fault, times=times, seconds=0.3)
    for one, other in zip(take(local, tmp_path), take(index, tmp_path / "cache"), strict=True):
        assert torch.equal(one.images, other.images)
    assert rule.done == times
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("error 503", "storage {url}: got "),
        ("reset", "storage {url}: got "),
        ("short body", "storage {url}: got "),
        ("stall", "storage {url}: got no answer, expected the file's bytes"),
        ("truncated", r"shard {url}: got \d+ bytes, expected \d+ bytes"),
        ("flipped bit", "shard {url}: got SHA-256"),
        ("error 403", "storage {url}: got OSError: Forbidden"),
    ],
)
def test_a_fault_that_stays_is_told_in_one_sentence(
    fault: Fault,
    sentence: str,
    proxy: FaultyProxy,
    gcs_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filesystem, "REQUEST_DEADLINE", 1.5)
    index = write_set(f"{gcs_bucket}/toy", COUNTS)
    proxy.add("GET", SHARD, fault, times=1000)
    with pytest.raises(UserError, match=sentence.format(url=f"{index.url}/{SHARD}")):
        take(index, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("fault", ["error 503", "short body", "truncated", "flipped bit"])
def test_an_index_is_asked_for_again(fault: Fault, proxy: FaultyProxy, gcs_bucket: str) -> None:
    index = write_set(f"{gcs_bucket}/toy", COUNTS)
    rule = proxy.add("GET", "index.parquet", fault)
    assert open_index(index.url).fingerprint == index.fingerprint
    assert rule.done == 1


@pytest.mark.parametrize("fault", ["truncated", "flipped bit"])
def test_an_index_that_stays_damaged_is_told(fault: Fault, proxy: FaultyProxy, gcs_bucket: str) -> None:
    index = write_set(f"{gcs_bucket}/toy", COUNTS)
    proxy.add("GET", "index.parquet", fault, times=2)
    with pytest.raises(UserError, match=rf"index {index.url}/index.parquet: got "):
        open_index(index.url)


@pytest.mark.parametrize(
    ("fault", "times"), [("error 503", 2), ("reset", 2), ("slow", 1), ("stall", 1), ("flipped upload", 1)]
)
def test_what_is_written_arrives_whole(fault: Fault, times: int, proxy: FaultyProxy, gcs_bucket: str) -> None:
    data = os.urandom(3 * 2**20)
    rule = proxy.add("POST", "blob", fault, times=times, seconds=1.0)
    Folder(f"{gcs_bucket}/out").write("blob", data)
    assert rule.done == times
    assert Folder(f"{gcs_bucket}/out").read("blob") == data


@pytest.mark.parametrize("fault", ["error 403", "reset", "flipped upload"])
def test_what_cannot_be_written_is_told(
    fault: Fault, proxy: FaultyProxy, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "REQUEST_DEADLINE", 1.5)
    proxy.add("POST", "blob", fault, times=1000)
    with pytest.raises(UserError, match=rf"storage {gcs_bucket}/out/blob: got "):
        Folder(f"{gcs_bucket}/out").write("blob", os.urandom(2**20))


FULL = """
import resource, signal, sys
from pathlib import Path
from drl_dist.data.index import open_index
from drl_dist.common.errors import UserError
from tests.data.test_storage_faults import take
url, folder, limit = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, instead of the process
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    take(open_index(url), Path(folder))
except UserError as error:
    print(error)
"""


def test_no_room_for_a_shard_is_told(gcs_emulator: GcsEmulator, gcs_bucket: str, tmp_path: Path) -> None:
    index = write_set(f"{gcs_bucket}/toy", COUNTS)
    size = index.shards[0].size
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={2 * size}", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        try:
            with pytest.raises(UserError, match=rf"cache folder {tmp_path}: got \[Errno 28\] No space left on device"):
                take(index, tmp_path)
            assert not list(tmp_path.glob("*.part"))
        finally:
            subprocess.run(["umount", tmp_path], check=True)
        return
    # Without the right to mount a small file system: small files.
    done = subprocess.run(
        [sys.executable, "-c", FULL, index.url, str(tmp_path), str(size // 2)],
        env=subprocess_environment(gcs_emulator.environment()),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith(f"cache folder {tmp_path}: got [Errno 27] File too large"), done.stdout
    assert not list(tmp_path.glob("*.part"))
