"""Preparation: published formats in, the right pixels out, and a sentence for whatever is wrong."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.data.decode import read_images
from drl_dist.data.index import open_index
from tests.data.published import encoded, photo, write_celeba, write_cifar10, write_fashion, write_lsun
from tests.helpers.preparation import facts, prepare
from tests.support import require


def smaller(pixels: NDArray[np.uint8], resolution: int) -> torch.Tensor:
    """Bilinear with antialiasing by another library, float (3, R, R)."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double()
    return torch.nn.functional.interpolate(image, (resolution, resolution), mode="bilinear", antialias=True)[0]


def assert_close(images: torch.Tensor, expected: list[torch.Tensor]) -> None:
    # Pillow rounds to whole grey values after each of its two passes.
    assert (images.double() - torch.stack(expected)).abs().max() <= 1.01


@pytest.mark.slow
def test_lsun_is_cut_to_its_middle_and_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(256, 341), (341, 256), (256, 256), (300, 257), (40, 30)]
    pictures = {f"{number * 7919:040x}".encode(): photo(number, *shape) for number, shape in enumerate(shapes)}
    values = {key: encoded(pixels, "WEBP", lossless=True) for key, pixels in pictures.items()}
    damaged = f"{2 * 7919 + 1:040x}".encode()
    values |= {damaged: values[f"{0:040x}".encode()][:300]}
    write_lsun(tmp_path / "church_outdoor_val_lmdb", values)
    out = tmp_path / "out"
    assert (
        prepare(
            "lsun",
            monkeypatch,
            "--source",
            tmp_path,
            "--split",
            "val",
            "--out",
            out,
            "--resolution",
            64,
            "--shard-size",
            4,
        )
        == 0
    )
    index = open_index(str(out))
    assert (index.name, index.split, index.channels, [row.num_samples for row in index.shards]) == (
        "lsun_church_outdoor",
        "val",
        3,
        [3, 2],
    )
    expected = []
    for key in sorted(pictures):
        pixels = pictures[key]
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        expected.append(smaller(pixels[top : top + side, left : left + side], 64))
    assert_close(read_images(index, 9), expected)
    assert [entry["source"] for entry in facts(index)] == [key.decode() for key in sorted(pictures)]
    (unreadable,) = json.loads((out / "unreadable.json").read_text())
    assert (unreadable["position"], unreadable["source"]) == (3, damaged.decode()) and "Error" in unreadable["reason"]


@pytest.mark.parametrize("packed", [True, False])
def test_celeba_takes_rows_20_to_198_of_its_split(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [0, 1, 0, 2, 0, 1]
    pictures = write_celeba(tmp_path / "celeba", parts, packed=packed)
    for split, number in (("train", 0), ("val", 1), ("test", 2)):
        out = tmp_path / split
        assert prepare("celeba", monkeypatch, "--source", tmp_path / "celeba", "--split", split, "--out", out) == 0
        index = open_index(str(out))
        assert (index.resolution, index.split) == (64, split)
        wanted = [place for place, part in enumerate(parts) if part == number]
        assert_close(read_images(index, 9), [smaller(pictures[place][20:198], 64) for place in wanted])
        assert [entry["source"] for entry in facts(index)] == [f"{place + 1:06d}.jpg" for place in wanted]


@pytest.mark.parametrize("unpacked", [True, False])
def test_cifar10_is_kept_as_it_is(unpacked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "cifar-10-binary.tar.gz"
    pixels, labels = write_cifar10(source, 4)
    if unpacked:
        with tarfile.open(source) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
        source = tmp_path / "unpacked"
    assert prepare("cifar10", monkeypatch, "--source", source, "--out", tmp_path / "out", "--shard-size", 8) == 0
    index = open_index(str(tmp_path / "out"))
    assert np.array_equal(read_images(index, 99).numpy(), pixels)
    assert [entry["label"] for entry in facts(index)] == labels.tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_framed_with_black(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = write_fashion(tmp_path / "source", 10, packed=packed)
    assert prepare("fashion_mnist", monkeypatch, "--source", tmp_path / "source", "--out", tmp_path / "out") == 0
    index = open_index(str(tmp_path / "out"))
    images = read_images(index, 99).numpy()
    assert images.shape == (10, 1, 32, 32)
    assert np.array_equal(images[:, 0, 2:30, 2:30], pixels)
    assert images.sum(dtype=int) == pixels.sum(dtype=int)
    assert [entry["label"] for entry in facts(index)] == labels.tolist()


@pytest.mark.slow
def test_debians_fashion_mnist_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = require("dataset-fashion-mnist")
    assert prepare("fashion_mnist", monkeypatch, "--source", source, "--split", "test", "--out", tmp_path) == 0
    index = open_index(str(tmp_path))
    assert index.num_samples == 10_000
    first = dataclasses.replace(index, shards=index.shards[:1])
    with gzip.open(source / "t10k-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read()[16:], dtype=np.uint8).reshape(-1, 28, 28)[:2048]
    with gzip.open(source / "t10k-labels-idx1-ubyte.gz") as file:
        labels = list(file.read()[8:][:2048])
    assert np.array_equal(read_images(first, 2048).numpy()[:, 0, 2:30, 2:30], raw)
    assert [entry["label"] for entry in facts(first)] == labels


@pytest.mark.slow
def test_digits_are_scikit_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    assert prepare("digits", monkeypatch, "--out", tmp_path / "a") == 0
    index, (flat, labels) = open_index(str(tmp_path / "a")), load_digits(return_X_y=True)
    images = np.asarray(flat).reshape(-1, 8, 8)
    assert len(index.shards) > 1
    assert np.array_equal(read_images(index, 2000).numpy()[:, 0], np.round(images * 255 / 16))
    assert [entry["label"] for entry in facts(index)] == np.asarray(labels).tolist()
    assert prepare("digits", monkeypatch, "--out", tmp_path / "b", "--resolution", 16) == 0
    assert read_images(open_index(str(tmp_path / "b")), 3).shape == (3, 1, 16, 16)


def test_a_folder_is_read_in_order_and_what_cannot_be_read_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "photos"
    (source / "b").mkdir(parents=True)
    first, second = photo(1, 32, 32), photo(2, 32, 32)
    (source / "a.PNG").write_bytes(encoded(first, "PNG"))
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn right by 90 degrees to see it upright.
    turned = np.ascontiguousarray(np.rot90(second))
    (source / "b" / "c.png").write_bytes(encoded(turned, "PNG", exif=exif))
    (source / "b" / "cut.jpg").write_bytes(encoded(first, "JPEG")[:200])
    (source / "b" / "text.png").write_text("hello")
    flipped = bytearray(encoded(first, "PNG"))
    flipped[flipped.index(b"IDAT") + 40] ^= 1
    (source / "flipped.png").write_bytes(flipped)
    (source / "bomb.png").write_bytes(
        encoded(np.zeros((1, 1), np.uint8), "PNG").replace(struct.pack(">II", 1, 1), struct.pack(">II", 65_000, 65_000))
    )
    (source / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    assert prepare("folder", monkeypatch, "--source", source, "--out", out, "--resolution", 32, "--name", "mine") == 0
    index = open_index(str(out))
    assert index.name == "mine" and [entry["source"] for entry in facts(index)] == ["a.PNG", "b/c.png"]
    images = read_images(index, 9).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(images[0], first) and np.array_equal(images[1], second)
    listed = json.loads((out / "unreadable.json").read_text())
    assert [(entry["position"], entry["source"]) for entry in listed] == [
        (2, "b/cut.jpg"),
        (3, "b/text.png"),
        (4, "bomb.png"),
        (5, "flipped.png"),
    ]
    assert "4 images could not be read" in (shown := capsys.readouterr().err) and "b/cut.jpg" in shown
    assert prepare("folder", monkeypatch, "--source", source, "--out", tmp_path / "grey", "--channels", 1) == 0
    assert open_index(str(tmp_path / "grey")).channels == 1


@pytest.mark.slow
def test_the_same_again_is_left_alone_and_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("digits", monkeypatch, "--out", tmp_path)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert prepare("digits", monkeypatch, "--out", tmp_path) == 0
    assert "nothing to do" in capsys.readouterr().err
    for options in (("--resolution", 16), ("--shard-size", 100)):
        with pytest.raises(UserError, match=rf"other options.*{options[0][2:].replace('-', '_')}: .* -> {options[1]}"):
            prepare("digits", monkeypatch, "--out", tmp_path, *options)
    write_fashion(tmp_path.parent / "source", 10, packed=True)
    with pytest.raises(UserError, match=r"name: digits -> fashion_mnist"):
        prepare("fashion_mnist", monkeypatch, "--source", tmp_path.parent / "source", "--out", tmp_path)
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}


def test_wrong_sources_say_what_they_found_and_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, source: object, message: str, *options: object) -> None:
        with pytest.raises(UserError, match=message) as caught:
            prepare(name, monkeypatch, "--source", source, "--out", tmp_path / "out", *options)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    empty = tmp_path / "empty"
    empty.mkdir()
    for name, needs in (
        ("lsun", "_lmdb"),
        ("celeba", "list_eval_partition"),
        ("cifar10", "cifar-10-binary"),
        ("fashion_mnist", "idx"),
        ("folder", "images"),
    ):
        refused(name, tmp_path / "nowhere", f"got .*nowhere, expected .*{needs}")
        refused(name, empty, "list_eval_partition" if name == "celeba" else f"got an empty folder.*{needs}")

    python_version = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(python_version, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"), io.BytesIO())
    refused("cifar10", python_version, "cifar-10-python.tar.gz without data_batch_1.bin.*not the Python one")
    python_version.write_bytes(b"\x1f\x8b junk")
    refused("cifar10", python_version, "no readable archive")
    (empty / "data_batch_1.bin").write_bytes(bytes(3072))
    refused("cifar10", empty, "without data_batch_2.bin")

    idx = tmp_path / "idx"
    write_fashion(idx, 3, packed=False)
    (idx / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 2) + bytes(2))
    refused("fashion_mnist", idx, "3 images but 2 labels")
    (idx / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, 3, 28, 28) + bytes(28 * 28))
    refused("fashion_mnist", idx, "784 bytes of data, expected 2352")
    (idx / "train-images-idx3-ubyte").write_bytes(b"hello")
    refused("fashion_mnist", idx, "expected an idx file")

    database = tmp_path / "bedroom_train_lmdb"
    write_lsun(database, {b"0" * 40: encoded(photo(0, 300, 300), "WEBP")})
    refused("lsun", database, "got bedroom_train_lmdb, expected church_outdoor_train_lmdb")
    data = (database / "data.mdb").read_bytes()
    (database / "data.mdb").write_bytes(data[: len(data) // 2])
    refused("lsun", database, r"data.mdb of \d+ bytes", "--category", "bedroom")
    (database / "data.mdb").write_bytes(b"hello" * 1000)
    refused("lsun", database, "no readable LMDB database", "--category", "bedroom")

    celeba = tmp_path / "celeba"
    write_celeba(celeba, [0, 1], packed=True)
    refused("celeba", celeba, "none of the 0 images that", "--split", "test")
    (celeba / "list_eval_partition.txt").write_text("000001.jpg train\n")
    refused("celeba", celeba, "got the line '000001.jpg train'")
    (celeba / "img_align_celeba.zip").write_bytes(b"hello")
    refused("celeba", celeba, "not a zip archive")


def test_a_source_without_one_readable_image_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("hello")
    with pytest.raises(UserError, match=r"1 image, none readable"):
        prepare("folder", monkeypatch, "--source", tmp_path / "photos", "--out", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resolution", "0"), "--resolution"),
        (("--shard-size", "0"), "--shard-size"),
        (("--out", ""), "--out"),
        (("--out", "ftp://host/x"), "a path, file://, gs:// or s3://"),
    ],
)
def test_impossible_options_are_refused(
    options: tuple[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        prepare("digits", monkeypatch, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
