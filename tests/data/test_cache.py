"""The cache: bounded, shared by processes, never a damaged shard, never one in use removed."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from drl_dist.common.errors import UserError
from drl_dist.config.tree import LoaderConfig
from drl_dist.data import cache as cache_module
from drl_dist.data.cache import ShardCache
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex
from drl_dist.data.stream import ShardStream
from tests.data.sets import write_set
from tests.gcs import GcsEmulator
from tests.support import subprocess_environment

pytestmark = pytest.mark.integration


@pytest.fixture
def index(gcs_bucket: str) -> ShardIndex:
    index = write_set(f"{gcs_bucket}/toy", (8,) * 8)
    assert len({shard.size for shard in index.shards}) == 1
    return index


def held(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir() if path.suffix == ".tar")


def cache_of(index: ShardIndex, folder: Path, shards: int) -> ShardCache:
    return ShardCache(index.url, cache_dir=str(folder), max_bytes=shards * index.shards[0].size)


def test_removes_what_was_used_longest_ago_and_keeps_its_bound(index: ShardIndex, tmp_path: Path) -> None:
    cache = cache_of(index, tmp_path, 3)
    for number in (0, 1, 2, 0, 3, 4):  # 0 is used again, so 1 and 2 go first.
        cache.open(index.shards[number]).close()
        time.sleep(0.02)  # The order of last use is known by the times of files.
        assert sum(path.stat().st_size for path in tmp_path.glob("*.tar")) <= 3 * index.shards[0].size
    assert held(tmp_path) == sorted(index.shards[number].sha256 for number in (0, 3, 4))


def test_what_is_in_use_stays(index: ShardIndex, tmp_path: Path) -> None:
    cache = cache_of(index, tmp_path, 3)
    first = cache.open(index.shards[0])
    expected = first.read_sample(7)
    for number in range(1, 8):
        cache.open(index.shards[number]).close()
    assert index.shards[0].sha256 in held(tmp_path)
    assert first.read_sample(7) == expected
    first.close()
    for number in range(1, 4):
        cache.open(index.shards[number]).close()
    assert index.shards[0].sha256 not in held(tmp_path)
    with pytest.raises(ValueError, match=r"closed"):
        first.read_sample(7)


def test_a_full_cache_is_an_error_and_a_patient_one_waits(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "ROOM_DEADLINE", 0.3)
    cache = cache_of(index, tmp_path, 2)
    first, second = cache.open(index.shards[0]), cache.open(index.shards[1])
    with pytest.raises(UserError, match=r"leave no room for toy-train-00002.tar.*cache_gib"):
        cache.open(index.shards[2])
    threading.Timer(0.8, first.close).start()
    third = cache.open(index.shards[2], patient=True)
    assert third.read_sample(0)
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        cache.open(index.shards[3], patient=True, stop=lambda: time.monotonic() - began > 0.6)
    for shard in (second, third):
        shard.close()


def test_what_a_killed_download_left_is_no_obstacle(index: ShardIndex, tmp_path: Path) -> None:
    row = index.shards[0]
    (tmp_path / f"{row.sha256}.part").write_bytes(b"half")
    (tmp_path / f"{'0' * 64}.part").write_bytes(bytes(2 * row.size))
    (tmp_path / f"{'0' * 64}.lock").touch()
    (tmp_path / f"{index.shards[1].sha256}.tar").write_bytes(b"cut")
    cache = cache_of(index, tmp_path, 2)
    for number in (0, 1):
        shard = cache.open(index.shards[number])
        assert len(shard.read_sample(0)) == index.shards[number].span(0)[1]
        shard.close()
    assert not list(tmp_path.glob("*.part"))


def test_a_running_download_is_not_removed(index: ShardIndex, tmp_path: Path) -> None:
    part = tmp_path / f"{'0' * 64}.part"
    part.with_suffix(".lock").touch()
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        file.truncate(2 * index.shards[0].size)
        cache = cache_of(index, tmp_path, 3)
        for number in range(4):
            cache.open(index.shards[number]).close()
            assert len(held(tmp_path)) == 1
        assert part.exists()


def test_a_shard_is_renamed_only_while_nobody_adds_up_the_files(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved, go_on, read = threading.Event(), threading.Event(), Folder.read

    def slow_read(folder: Folder, *args: Any) -> bytes:
        reserved.set()
        assert go_on.wait(30)
        return read(folder, *args)

    monkeypatch.setattr(Folder, "read", slow_read)
    row, cache = index.shards[0], cache_of(index, tmp_path, 2)
    with ThreadPoolExecutor(1) as pool:
        shard = pool.submit(cache.open, row)
        assert reserved.wait(30)
        with (tmp_path / "room.lock").open("wb") as room:
            fcntl.flock(room, fcntl.LOCK_EX)
            go_on.set()
            with pytest.raises(TimeoutError):
                shard.result(0.5)
            assert {path.suffix for path in tmp_path.glob(f"{row.sha256}.*")} == {".lock", ".part"}
        shard.result(30).close()
    assert held(tmp_path) == [row.sha256]


READER = """
import sys
from itertools import islice
from drl_dist.config.tree import LoaderConfig
from drl_dist.data.index import open_index
from drl_dist.data.stream import ShardStream
url, folder, gib, rank = sys.argv[1:]
loader = LoaderConfig(cache_dir=folder, cache_gib=float(gib), window_shards=1, prefetch_batches=1)
with ShardStream(open_index(url), seed=1, batch_size=4, rank=int(rank), world_size=2, loader=loader) as stream:
    print(sum(int(batch.images.long().sum()) for batch in islice(stream, 48)))
"""


def test_processes_share_it_below_its_bound(index: ShardIndex, tmp_path: Path, gcs_emulator: GcsEmulator) -> None:
    bound = 4 * index.shards[0].size
    # One byte more than four shards, since GiB are given as a decimal fraction.
    gib = str((bound + 1) / 2**30)
    with ShardStream(index, seed=1, batch_size=4, loader=LoaderConfig(cache_dir=str(tmp_path / "own"))) as stream:
        expected = sum(int(batch.images.long().sum()) for batch, _ in zip(stream, range(48), strict=False))
    shared = tmp_path / "shared"
    shared.mkdir()
    environment = subprocess_environment(gcs_emulator.environment())
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, index.url, str(shared), gib, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    largest = 0
    while any(reader.poll() is None for reader in readers):
        sizes = []
        for entry in os.scandir(shared):
            if not entry.name.endswith((".tar", ".part")):
                continue
            try:
                sizes.append(entry.stat().st_size)
            except FileNotFoundError:
                continue
        largest = max(largest, sum(sizes))
        time.sleep(0.01)
    outputs = [reader.communicate()[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    assert largest <= bound
    assert largest > 0
    assert expected == sum(int(output) for output in outputs)


def test_a_cache_smaller_than_the_shards_in_use_is_refused_at_once(index: ShardIndex, tmp_path: Path) -> None:
    loader = LoaderConfig(cache_dir=str(tmp_path), cache_gib=2 * index.shards[0].size / 2**30)
    with pytest.raises(UserError, match=r"loader.cache_gib.*expected at least"):
        ShardStream(index, seed=0, batch_size=4, loader=loader)


def test_a_cache_folder_that_cannot_be_made_is_refused(index: ShardIndex, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"loader.cache_dir"):
        ShardStream(index, seed=0, batch_size=4, loader=LoaderConfig(cache_dir=str(tmp_path / "file" / "cache")))


def test_ranks_of_one_machine_that_read_different_shards_need_room_for_all(index: ShardIndex, tmp_path: Path) -> None:
    # Each of four has two shards of each batch to itself, of the batch at hand, the next one, and those behind.
    def stream(rank: int, shards: int, ranks_here: int) -> ShardStream:
        room = shards * index.shards[0].size / 2**30
        loader = LoaderConfig(cache_dir=str(tmp_path), cache_gib=room, window_shards=1, prefetch_batches=1)
        return ShardStream(wide, seed=0, batch_size=64, rank=rank, world_size=4, ranks_here=ranks_here, loader=loader)

    wide = dataclasses.replace(index, shards=index.shards * 4)
    # A machine that has one of them needs room for that one's alone.
    with stream(0, 12, ranks_here=1):
        pass
    with pytest.raises(UserError, match=r"loader.cache_gib.*expected at least"):
        stream(0, 12, ranks_here=4)
