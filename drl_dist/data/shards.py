"""Packing of samples into a shard, a WebDataset tar whose bytes depend only on its samples."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_SAMPLE_ID = 999_999_999


@dataclass(frozen=True)
class Sample:
    """One image of a shard."""

    sample_id: int
    """Position in the data set, 0 to 999 999 999; names the members ``<9 digits>.png`` and ``.json``."""
    png: bytes
    """The encoded image, see `encode_png`."""
    facts: Mapping[str, Any] | None = None
    """Further metadata, e.g. ``{"label": 3, "source": "img/3.jpg"}``; stored as JSON."""


@dataclass(frozen=True, eq=False, slots=True)
class ShardRow:
    """One shard's row of the index."""

    name: str
    """File name in the shard folder."""
    size: int
    """Size of the file in bytes."""
    sha256: str
    """Checksum of the file, 64 hexadecimal digits."""
    offsets: NDArray[np.int64]
    """(num_samples,) offset of each sample's first tar header, in bytes."""

    @property
    def num_samples(self) -> int:
        """Samples in the shard."""
        return len(self.offsets)

    def span(self, sample: int) -> tuple[int, int]:
        """First byte of a sample, and the first byte after it."""
        last = sample + 1 == len(self.offsets)
        return int(self.offsets[sample]), self.size if last else int(self.offsets[sample + 1])


def shard_name(name: str, split: str, number: int) -> str:
    """File name of a data set's shard, e.g. ``digits-train-00003.tar``."""
    return f"{name}-{split}-{number:05d}.tar"


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A lossless PNG of uint8 pixels (C, H, W) with 1 or 3 channels."""
    image = pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(image, "L" if pixels.shape[0] == 1 else "RGB").save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def pack_shard(name: str, samples: Iterable[Sample]) -> tuple[bytes, ShardRow]:
    """The bytes of a shard and its row of the index.

    The same samples give the same bytes everywhere: members carry no time, owner or machine.

    Raises:
        ValueError: sample ids do not increase, or do not fit into nine digits.
    """
    buffer = io.BytesIO()
    offsets: list[int] = []
    previous = -1
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if not previous < sample.sample_id <= MAX_SAMPLE_ID:
                raise ValueError(f"sample id {sample.sample_id} after {previous}")
            previous = sample.sample_id
            offsets.append(tar.offset)
            _add(tar, f"{sample.sample_id:09d}.png", sample.png)
            if sample.facts:
                text = json.dumps(sample.facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
                _add(tar, f"{sample.sample_id:09d}.json", text.encode())
    data = buffer.getvalue()
    return data, ShardRow(name, len(data), hashlib.sha256(data).hexdigest(), np.array(offsets, dtype=np.int64))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))
