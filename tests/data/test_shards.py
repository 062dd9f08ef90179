"""Shards are plain WebDataset tars, byte for byte determined by their samples."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset import WebDataset

from drl_dist.data.decode import register_webdataset_openers
from drl_dist.data.shards import Sample, encode_png, pack_shard
from tests.data.sets import pixels_of, sample_ids, sample_of, write_set


def test_bytes_are_those_recorded_once() -> None:
    samples = [Sample(3, b"not really a png", {"label": 7, "source": "é"}), Sample(999_999_999, b"x" * 513)]
    data, row = pack_shard("a.tar", samples)
    assert row.sha256 == hashlib.sha256(data).hexdigest()
    assert row.sha256 == "615a47117bc1d08ff674dfeb4b7e0c21a7ce083384d6c23ade5639dcb97a3d32"
    assert (row.size, row.offsets.tolist(), row.num_samples) == (10240, [0, 2048], 2)
    assert [row.span(0), row.span(1)] == [(0, 2048), (2048, 10240)]


def test_offsets_are_those_that_tarfile_finds() -> None:
    data, row = pack_shard("a.tar", [sample_of(number) for number in range(20)])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [member.offset for member in members if member.name.endswith(".png")] == row.offsets.tolist()
    assert [member.name for member in members[:3]] == ["000000000.png", "000000000.json", "000000001.png"]
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_lossless(channels: int) -> None:
    pixels = pixels_of(5, channels, 33)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == ("L" if channels == 1 else "RGB")
        decoded = np.asarray(image)
    assert np.array_equal(decoded, pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("numbers", [(1, 1), (2, 1), (-1,), (10**9,)])
def test_sample_ids_rise_within_nine_digits(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="sample id"):
        pack_shard("a.tar", [Sample(number, b"") for number in numbers])


def test_plain_webdataset_reads_them(tmp_path: Path) -> None:
    index = write_set(str(tmp_path))
    urls = [str(tmp_path / shard.name) for shard in index.shards]
    decoded = list(WebDataset(urls, shardshuffle=False).decode("l8").to_tuple("png", "json"))
    images = np.stack([image for image, _ in decoded])[:, None]
    assert sample_ids(images) == list(range(index.num_samples))
    assert [facts["label"] for _, facts in decoded] == [number % 10 for number in range(index.num_samples)]


@pytest.mark.integration
def test_plain_webdataset_reads_them_from_object_storage(gcs_bucket: str) -> None:
    index = write_set(f"{gcs_bucket}/toy")
    register_webdataset_openers()
    urls = [f"{gcs_bucket}/toy/{shard.name}" for shard in index.shards]
    images = [image for (image,) in WebDataset(urls, shardshuffle=False).decode("l8").to_tuple("png")]
    assert sample_ids(np.stack(images)[:, None]) == list(range(index.num_samples))
