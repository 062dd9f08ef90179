"""Object storage in the memory of this process that counts its requests, and a data set of any size in it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem

from drl_dist.data.index import ShardIndex, write_index
from drl_dist.data.shards import Sample, ShardRow, encode_png, pack_shard, shard_name

BUCKET = "gs://scale"
PAGE = 1000
"""Entries of one answer to LIST, as Google's storage and S3 give them."""
_NUMBER = b"0123456789"
"""In the template of a shard, where the shard's own number goes."""

Content = bytes | int | Callable[[], bytes]
"""Of a file: its bytes, its size alone (zeros), or what makes the bytes when they are read."""


@dataclass
class Bucket:
    """Files by folder and name, and the requests so far: list (pages), head, get, put and delete."""

    folders: dict[str, dict[str, tuple[int, Content]]] = field(default_factory=dict[str, Any])
    requests: Counter[str] = field(default_factory=Counter[str])
    read: Counter[str] = field(default_factory=Counter[str])
    """How often each file was asked for, by its path."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, path: str, content: Content, size: int | None = None) -> None:
        """Keep a file without counting it."""
        folder, _, name = path.removeprefix("gs://").rpartition("/")
        if size is None:
            assert not callable(content)
            size = content if isinstance(content, int) else len(content)
        with self.lock:
            self.folders.setdefault(folder, {})[name] = size, content

    def count(self, kind: str, number: int = 1) -> None:
        """Note requests."""
        with self.lock:
            self.requests[kind] += number

    def taken(self) -> int:
        """All requests since the last call of it."""
        with self.lock:
            number = self.requests.total()
            self.requests.clear()
        return number


class CountedStorage(AbstractFileSystem):
    """`Bucket` as a filesystem, with the methods that `drl_dist.data.filesystem` uses."""

    cachable = False
    bucket: ClassVar[Bucket]

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        path = path.rstrip("/")
        files = self.bucket.folders.get(path, {})
        below = {one[len(path) + 1 :].partition("/")[0] for one in self.bucket.folders if one.startswith(f"{path}/")}
        self.bucket.count("list", max(1, -(-(len(files) + len(below)) // PAGE)))
        if not files and not below:
            raise FileNotFoundError(path)
        entries = [{"name": f"{path}/{name}", "size": size, "type": "file"} for name, (size, _) in files.items()]
        entries += [{"name": f"{path}/{name}", "size": 0, "type": "directory"} for name in sorted(below)]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self.bucket.count("head")
        folder, _, name = path.rpartition("/")
        if not folder:
            return {"name": path, "size": 0, "type": "directory"}
        return {"name": path, "size": self._held(folder, name, path)[0], "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.bucket.count("get")
        with self.bucket.lock:
            self.bucket.read[path] += 1
        folder, _, name = path.rpartition("/")
        _, content = self._held(folder, name, path)
        data = bytes(content) if isinstance(content, int) else content if isinstance(content, bytes) else content()
        return data[start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self.bucket.count("put")
        self.bucket.put(path, bytes(value))

    def rm_file(self, path: str) -> None:
        self.bucket.count("delete")
        folder, _, name = path.rpartition("/")
        if self.bucket.folders.get(folder, {}).pop(name, None) is None:
            raise FileNotFoundError(path)
        if not self.bucket.folders[folder]:
            del self.bucket.folders[folder]

    def _held(self, folder: str, name: str, path: str) -> tuple[int, Content]:
        try:
            return self.bucket.folders[folder][name]
        except KeyError:
            raise FileNotFoundError(path) from None


@contextmanager
def counted_storage() -> Iterator[Bucket]:
    """Let every ``gs://`` of this process be a new bucket."""
    bucket = Bucket()
    storage = type("CountedBucket", (CountedStorage,), {"bucket": bucket})
    with patch.dict(_registry, {"gs": storage}):
        yield bucket


def index_of_size(url: str, shards: int, samples: int) -> ShardIndex:
    """Write the index of a data set whose shards do not exist: PNG files of 64 x 64 pixels, of varied sizes."""
    random = np.random.Generator(np.random.PCG64(0))
    rows: list[ShardRow] = []
    for number in range(shards):
        # Header, picture, header and facts: a picture of 16 blocks on average.
        blocks = 3 + random.integers(12, 21, samples)
        offsets = 512 * np.concatenate([[0], np.cumsum(blocks)])
        sha256 = random.bytes(32).hex()
        name = shard_name("bedroom", "train", number)
        rows.append(ShardRow(name, int(offsets[-1]) + 1024, sha256, offsets[:-1].astype(np.int64)))
    index = ShardIndex(url=url, name="bedroom", split="train", resolution=64, channels=3, shards=tuple(rows))
    write_index(index)
    return index


def data_set(bucket: Bucket, url: str, shards: int, samples: int) -> ShardIndex:
    """Shards of 8 x 8 pixels in the bucket, made as they are read, and their index.

    They differ in one number, in the facts of their first image.
    """
    import hashlib

    png = encode_png(np.arange(64, dtype=np.uint8).reshape(1, 8, 8))
    template, row = pack_shard(
        "template",
        [Sample(at, png, {"source": _NUMBER.decode()} if at == 0 else {"label": 0}) for at in range(samples)],
    )
    before, after = template.split(_NUMBER)

    def content(number: int) -> bytes:
        return b"".join((before, f"{number:010d}".encode(), after))

    head, rows = hashlib.sha256(before), list[ShardRow]()
    for number in range(shards):
        digest = head.copy()
        digest.update(f"{number:010d}".encode() + after)
        name = shard_name("scale", "train", number)
        rows.append(ShardRow(name, row.size, digest.hexdigest(), row.offsets))
        bucket.put(f"{url}/{name}", lambda number=number: content(number), row.size)
    index = ShardIndex(url=url, name="scale", split="train", resolution=8, channels=1, shards=tuple(rows))
    write_index(index)
    return index
