"""The stream: the right images, whatever the number of ranks, and one sentence for every damage."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.config.tree import LoaderConfig
from drl_dist.data import stream as stream_module
from drl_dist.data.decode import read_image, read_images
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, open_index, write_index
from drl_dist.data.order import SampleOrder, flips
from drl_dist.data.pixels.pictures import PictureError, decoding, open_verified
from drl_dist.data.shards import Sample, ShardRow, encode_png, pack_shard
from drl_dist.data.stream import ShardStream
from tests.data.sets import pixels_of, sample_ids, sample_of, tar_of, write_set

COUNTS = (16, 16, 16, 5)
FIRSTS = np.concatenate([[0], np.cumsum(COUNTS)[:-1]])


def take(count: int, index: ShardIndex, **options: object) -> list[Batch]:
    options = {"seed": 3, "batch_size": 8} | options
    with ShardStream(index, **options) as stream:  # pyright: ignore[reportArgumentType]
        return list(islice(stream, count))


def expected_ids(positions: np.ndarray, seed: int, window_shards: int) -> list[int]:
    found = SampleOrder(COUNTS, seed, window_shards).locate(positions)
    return (FIRSTS[found.shard] + found.sample).tolist()


def open_files(folder: Path) -> int:
    """Files below a folder that this process holds open; what other threads open elsewhere does not count."""
    targets = list[str]()
    for descriptor in Path("/proc/self/fd").iterdir():
        # The listing's own descriptor is closed by now, and any other may be.
        with suppress(FileNotFoundError):
            targets.append(str(descriptor.readlink()))
    return sum(target.startswith(str(folder)) for target in targets)


def threads_of_streams() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decode", "fetch"))]


@pytest.mark.parametrize("channels", [1, 3])
def test_yields_the_images_that_the_order_says(channels: int, tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS, channels=channels)
    batches = take(20, index, loader=LoaderConfig(window_shards=2))
    for step, batch in enumerate(batches):
        positions = np.arange(8 * step, 8 * step + 8)
        ids = expected_ids(positions, 3, 2)
        assert batch.images.dtype == torch.uint8 and batch.images.shape == (8, channels, 8, 8)
        assert batch.positions.dtype == torch.int64 and batch.positions.tolist() == positions.tolist()
        assert np.array_equal(batch.images.numpy(), np.stack([pixels_of(number, channels) for number in ids]))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_is_the_same_for_any_number_of_ranks(world_size: int, tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    options = {"horizontal_flip": True, "loader": LoaderConfig(window_shards=1, prefetch_batches=2)}
    whole = take(15, index, **options)
    shares = [take(15, index, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        positions = torch.cat([share[step].positions for share in shares])
        images = torch.cat([share[step].images for share in shares])
        # Each has consecutive positions, and the first ranks one more than the others.
        assert torch.equal(positions, batch.positions) and torch.equal(images, batch.images)
        sizes = [len(share[step].positions) for share in shares]
        assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1


def test_resumes_where_it_stopped(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    whole = take(14, index, horizontal_flip=True)
    rest = take(7, index, horizontal_flip=True, start_position=7 * 8)
    for one, other in zip(whole[7:], rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.positions, other.positions)


def test_mirrors_the_images_that_the_coin_says(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    plain, mirrored = take(6, index), take(6, index, horizontal_flip=True)
    coins = flips(np.arange(48), 3)
    for step in range(6):
        for row in range(8):
            image = plain[step].images[row]
            assert torch.equal(mirrored[step].images[row], image.flip(-1) if coins[8 * step + row] else image)
    assert 0 < coins.sum() < 48


def test_a_batch_may_be_larger_than_the_data_set(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    (batch,) = take(1, index, batch_size=160)
    assert sample_ids(batch.images.numpy()) == expected_ids(np.arange(160), 3, 4)


def test_closing_ends_threads_and_lets_go_of_files(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    for _ in range(5):
        take(9, index, loader=LoaderConfig(window_shards=1))
    stream = ShardStream(index, seed=0, batch_size=4)
    next(iter(stream))
    assert threads_of_streams()
    stream.close()
    stream.close()
    assert list(stream) == []
    assert not threads_of_streams()
    assert open_files(tmp_path) == 0


def test_holds_only_the_windows_in_use(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), (8,) * 40)
    with ShardStream(index, seed=0, batch_size=4, loader=LoaderConfig(window_shards=2, prefetch_batches=2)) as stream:
        counts = [open_files(tmp_path) for _ in islice(stream, 200)]
    # The window in use, the one that two batches ahead may reach into, and the next. Threads that are behind have not
    # opened theirs yet.
    assert 0 < max(counts) <= 3 * 2


@pytest.mark.parametrize(
    ("kept", "fewest", "most"), [(53, 53, 53 + 2 * 8), (20, 53 + 2 * 33, 160 + 16 - 2 * 20), (0, 160, 176)]
)
def test_decodes_again_only_what_it_has_no_room_to_keep(
    kept: int, fewest: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, decoded = write_set(str(tmp_path), COUNTS), []

    def counting(*args: Any) -> Any:
        decoded.append(args)
        return read_image(*args)

    expected = take(20, index)
    monkeypatch.setattr(stream_module, "read_image", counting)
    loader = LoaderConfig(prefetch_batches=2, decoded_mib=kept * (64 + 400) / 2**20)
    # Three epochs of 53 images, and up to two batches ahead. Where epochs meet, two may decode one image.
    for batch, other in zip(take(20, index, loader=loader), expected, strict=True):
        assert torch.equal(batch.images, other.images)
    assert fewest <= len(decoded) <= most


def test_every_rank_must_have_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.batch_size: got 8, expected an image for each of 9 workers"):
        ShardStream(write_set(str(tmp_path)), seed=0, batch_size=8, world_size=9)


def test_read_images_reads_the_first(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    assert sample_ids(read_images(index, 20).numpy()) == list(range(20))
    assert read_images(index, 1000).shape == (53, 1, 8, 8)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    path = tmp_path / index.shards[2].name
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"shard .*{path.name}: got SHA-256"):
        take(10, open_index(str(tmp_path)))
    assert not threads_of_streams()


def test_a_shard_cut_after_the_start_is_found(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    path = tmp_path / index.shards[2].name
    path.write_bytes(path.read_bytes()[: index.shards[2].span(8)[0]])
    with pytest.raises(UserError, match=rf"shard .*{path.name}: got \d+ bytes, expected {index.shards[2].size} bytes"):
        take(10, index)


def _stored(url: str, data: bytes, offsets: tuple[int, ...]) -> ShardIndex:
    """An index that vouches for any bytes, as a stranger could make it."""
    row = ShardRow("evil.tar", len(data), hashlib.sha256(data).hexdigest(), np.array(offsets, dtype=np.int64))
    Folder(url).write(row.name, data)
    write_index(ShardIndex(url=url, name="evil", split="train", resolution=8, channels=1, shards=(row,)))
    return open_index(url)


def _png(mode: str = "L", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=kind)
    return buffer.getvalue()


GOOD = encode_png(pixels_of(0))
BAD_SHARDS: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "cut image": ([("000000000.png", GOOD[:60])], "a damaged image"),
    "corrupt image": ([("000000000.png", GOOD[:45] + b"\xff" * 8 + GOOD[53:])], "a damaged image"),
    "no image": ([("000000000.png", b"hello")], "a damaged image"),
    "a JPEG": ([("000000000.png", _png(kind="JPEG"))], "a damaged image"),
    "larger image": ([("000000000.png", _png(size=(16, 16)))], "an image of size and mode"),
    "image bomb": ([("000000000.png", _png(mode="1", size=(30_000, 30_000)))], "a damaged image"),
    "colour": ([("000000000.png", _png(mode="RGB"))], "an image of size and mode"),
    "16 bits": ([("000000000.png", _png(mode="I;16"))], "an image of size and mode"),
    "pickle": (
        [("000000000.png", GOOD), ("000000000.pkl", b"cos\nsystem\n(S'exit 1'\ntR.")],
        "png and json members only",
    ),
    "python": ([("000000000.png", GOOD), ("000000000.pyd", b"x")], "png and json members only"),
    "path": ([("../../000000000.png", GOOD)], "one sample named by nine digits"),
    "name": ([("photo.png", GOOD)], "one sample named by nine digits"),
    "two samples": ([("000000000.png", GOOD), ("000000001.png", GOOD)], "one sample named by nine digits"),
    "twice": ([("000000000.png", GOOD), ("000000000.png", GOOD)], "duplicate file name"),
    "facts only": ([("000000000.json", b"{}")], "a png member"),
    "nothing": ([], r"samples named \[\]"),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_a_malicious_or_damaged_sample_is_named(case: str, tmp_path: Path) -> None:
    members, message = BAD_SHARDS[case]
    index = _stored(str(tmp_path), tar_of(members), (0,))
    with pytest.raises(UserError, match=rf"sample 0 of shard {tmp_path}/evil.tar: got .*{message}"):
        take(1, index, batch_size=1)
    assert not threads_of_streams()


def test_bytes_that_are_no_tar_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sample 0 of shard .*evil.tar"):
        take(1, _stored(str(tmp_path), os.urandom(20480), (0,)), batch_size=1)


def test_one_damaged_image_among_intact_ones_is_named(tmp_path: Path) -> None:
    samples = [sample_of(number) for number in range(6)]
    samples[4] = Sample(4, samples[4].png[:-30] + bytes(30))
    data, row = pack_shard("evil.tar", samples)
    with pytest.raises(UserError, match=r"sample 4 of shard"):
        take(3, _stored(str(tmp_path), data, tuple(row.offsets.tolist())), batch_size=6)


def test_no_flipped_bit_makes_another_image() -> None:
    pixels, png = pixels_of(7), sample_of(7).png
    found = 0
    for bit in range(8 * len(png)):
        damaged = bytearray(png)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            with decoding():
                decoded = np.asarray(open_verified(bytes(damaged), formats=("PNG",)))
        except PictureError:
            found += 1
        else:
            assert np.array_equal(decoded, pixels[0]), f"bit {bit}"
    # Only the length and the checksum of the empty last chunk may be anything.
    assert found == 8 * (len(png) - 8)


@pytest.mark.integration
def test_streams_from_object_storage(gcs_bucket: str, tmp_path: Path) -> None:
    local, remote = write_set(str(tmp_path / "local"), COUNTS), write_set(f"{gcs_bucket}/deep/toy", COUNTS)
    assert open_index(f"{gcs_bucket}/deep/toy").fingerprint == local.fingerprint
    loader = LoaderConfig(cache_dir=str(tmp_path / "cache"), window_shards=2)
    for one, other in zip(take(14, local, loader=loader), take(14, remote, loader=loader), strict=True):
        assert torch.equal(one.images, other.images)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".tar", ".lock", ".json"}
    damaged = bytearray(Folder(remote.url).read(remote.shards[0].name))
    damaged[999] ^= 4
    Folder(remote.url).write(remote.shards[0].name, bytes(damaged))
    fresh = LoaderConfig(cache_dir=str(tmp_path / "fresh"), window_shards=2)
    with pytest.raises(UserError, match=rf"shard {remote.url}/{remote.shards[0].name}: got SHA-256"):
        take(14, remote, loader=fresh)
    assert not [path for path in (tmp_path / "fresh").iterdir() if path.suffix == ".part"]
    Folder(remote.url).remove(remote.shards[0].name)
    with pytest.raises(UserError, match=r"no such file"):
        take(14, remote, loader=fresh)
