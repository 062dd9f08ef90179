"""Published data sets in odd forms: one damaged image is one image, whatever cannot be used is one sentence."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from datasets_prep._celeba_tables import read_partition
from drl_dist.common.errors import UserError
from drl_dist.data.decode import read_images
from drl_dist.data.index import open_index, write_index
from drl_dist.data.pixels import depth, pictures
from tests.data.published import encoded, write_celeba, write_cifar10, write_fashion, write_lsun
from tests.helpers.preparation import PNG, facts, last_line, prepare

# CelebA


@pytest.mark.parametrize(
    "data",
    [
        b"a.jpg 0\nb.jpg 2\n",
        b"image_id,partition\na.jpg,0\nb.jpg,2\n",
        codecs.BOM_UTF8 + b"image_id,partition\r\na.jpg,0\r\nb.jpg,2\r\n",
        codecs.BOM_UTF8 + b"a.jpg\t0\r\n\r\nb.jpg  2 \r\n",
        b'"image_id";"partition"\n"a.jpg";"0"\n"b.jpg"; "2"',
        "image_id,partition\r\na.jpg,0\r\nb.jpg,2\r\n".encode("utf-16"),
    ],
)
def test_a_partition_is_read_in_each_form_that_it_comes_in(data: bytes) -> None:
    assert read_partition(Path("x"), data) == {"a.jpg": "0", "b.jpg": "2"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a.jpg 3\n", "'a.jpg 3'"),
        (b"a.jpg train\n", "'a.jpg train'"),
        (b"a.jpg 0 1\n", "'a.jpg 0 1'"),
        (b",image_id,partition\n0,a.jpg,0\n", "image_id"),
        (b"a.jpg 0\na.jpg 1\n", "after another one for a.jpg"),
        (b"\x89PNG\r\n\x1a\n\0\0", "the line"),
    ],
)
def test_a_partition_that_is_none_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_partition(Path("x"), data)


@pytest.mark.parametrize("packed", [True, False])
def test_kaggles_celeba_and_what_does_not_fit_its_partition(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "celeba"
    write_celeba(source, [0, 0, 1, 0], packed=packed)
    (source / "list_eval_partition.txt").unlink()
    table = "".join(f"00000{number}.jpg,0\r\n" for number in (1, 2, 9))
    (source / "list_eval_partition.csv").write_bytes(codecs.BOM_UTF8 + f"image_id,partition\r\n{table}".encode())
    images = source / "img_align_celeba"
    if packed:
        with zipfile.ZipFile(source / "img_align_celeba.zip", "a") as archive:
            archive.writestr("__MACOSX/img_align_celeba/000001.jpg", b"x")
            archive.writestr("../../000001.jpg", archive.read("img_align_celeba/000001.jpg"))
    else:
        images.rename(source / "inner")
        images.mkdir()
        (source / "inner").rename(images / "img_align_celeba")
    for given in (source,) if packed else (source, images, images / "img_align_celeba"):
        out = tmp_path / f"out-{len(str(given))}"
        assert prepare("celeba", monkeypatch, "--source", given, "--out", out) == 0
        assert [entry["source"] for entry in facts(open_index(str(out)))] == ["000001.jpg", "000002.jpg"]
        (listed,) = json.loads((out / "unreadable.json").read_text())
        assert listed["source"] == "000009.jpg" and listed["reason"].startswith("FileNotFoundError: ")
        line = last_line(capsys)
        assert "1 that could not be read" in line and "2 not in the partition" in line
        assert ("1 in __MACOSX" in line and "1 repeated in the archive" in line) == packed


def test_a_partition_in_another_form_is_the_same_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "celeba"
    write_celeba(source, [0, 1, 0], packed=False)
    run = ("--source", source, "--out", tmp_path / "out", "--partition")
    official = source / "list_eval_partition.txt"
    assert prepare("celeba", monkeypatch, *run, official) == 0
    lines = official.read_text().splitlines()
    table = tmp_path / "table.csv"
    table.write_bytes(codecs.BOM_UTF8 + b"".join(line.replace(" ", ",").encode() + b"\r\n" for line in lines))
    assert prepare("celeba", monkeypatch, *run, table) == 0
    # The digest of the official file has not changed, and one of another file's bytes is still recognised.
    sizes = "".join(f"\n00000{n}.jpg {(source / f'img_align_celeba/00000{n}.jpg').stat().st_size}" for n in (1, 3))
    index = open_index(str(tmp_path / "out"))
    assert index.made_by["source"] == hashlib.sha256(official.read_bytes() + sizes.encode()).hexdigest()
    by_bytes = dict(index.made_by) | {"source": hashlib.sha256(table.read_bytes() + sizes.encode()).hexdigest()}
    write_index(replace(index, made_by=by_bytes))
    capsys.readouterr()
    assert prepare("celeba", monkeypatch, *run, table) == 0
    assert "earlier version" not in capsys.readouterr().err
    with pytest.raises(UserError, match="another source"):
        prepare("celeba", monkeypatch, *run, official)


def test_an_archive_with_the_separators_of_windows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "celeba"
    write_celeba(source, [0, 0], packed=True)
    with zipfile.ZipFile(source / "img_align_celeba.zip") as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(source / "img_align_celeba.zip", "w") as archive:
        for name, data in [*members, ("__MACOSX/img_align_celeba/._000001.jpg", b"x")]:
            info = zipfile.ZipInfo()
            info.filename = name.replace("/", "\\")
            archive.writestr(info, data)
    assert prepare("celeba", monkeypatch, "--source", source, "--out", tmp_path / "out") == 0
    assert [entry["source"] for entry in facts(open_index(str(tmp_path / "out")))] == ["000001.jpg", "000002.jpg"]


def with_flags(path: Path, name: str, *, flags: int = 0, method: int | None = None) -> None:
    """Mark a member of an archive as encrypted or as compressed by another method, in both of its headers."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    central = data.rindex(name.encode()) - 46
    for start, at in ((info.header_offset, 6), (central, 8)):
        assert data[start : start + 4] in (b"PK\x03\x04", b"PK\x01\x02")
        data[start + at] |= flags
        if method is not None:
            data[start + at + 2] = method
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flags": 1}, "encrypted"),
        ({"method": 9}, "Deflate64"),
        ({"method": 98}, "PPMd"),
        ({"method": 77}, "method 77"),
    ],
)
def test_members_that_cannot_be_unpacked_are_images_left_out(
    change: dict[str, int], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "celeba"
    write_celeba(source, [0, 0], packed=True)
    path = source / "img_align_celeba.zip"
    with_flags(path, "img_align_celeba/000002.jpg", **change)
    for _ in range(2):
        assert prepare("celeba", monkeypatch, "--source", source, "--out", tmp_path / "out") == 0
    (listed,) = json.loads((tmp_path / "out" / "unreadable.json").read_text())
    assert listed["source"] == "000002.jpg" and reason in listed["reason"]
    with_flags(path, "img_align_celeba/000001.jpg", **change)
    with pytest.raises(UserError, match=f"images that are all .*{reason}.*unpack it with another program"):
        prepare("celeba", monkeypatch, "--source", source, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_archives_that_cannot_be_used_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "celeba"
    write_celeba(source, [0, 0], packed=True)
    path = source / "img_align_celeba.zip"
    whole = path.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            prepare("celeba", monkeypatch, "--source", source, "--out", tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    central = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[:central] + b"junk" + whole[central + 4 :])
    refused("a damaged archive")
    # A name that says it is UTF-8 and is not.
    broken = bytearray(whole)
    broken[central + 9] |= 0x08
    broken[central + 46] = 0xFF
    path.write_bytes(broken)
    refused("a damaged archive")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("img_align_celeba.zip", whole)
    refused("img_align_celeba.zip, which is packed itself")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/000001.jpg", b"one")
        archive.writestr("b/000001.jpg", b"another")
    refused(r"two different files named 000001\.jpg \(a/000001\.jpg and b/000001\.jpg\)")
    # With a program before it that unpacks it, it is an archive all the same.
    path.write_bytes(b"#!/bin/sh\nexit 1\n" + whole)
    assert prepare("celeba", monkeypatch, "--source", source, "--out", tmp_path / "out") == 0


# LSUN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "options", "name"),
    [
        ("kitchen_val_lmdb", ("--category", "kitchen", "--split", "val"), "lsun_kitchen"),
        ("cat", ("--category", "cat"), "lsun_cat"),
        ("cat_lmdb", ("--category", "cat"), "lsun_cat"),
        ("tv-monitor", ("--category", "tv-monitor"), "lsun_tv_monitor"),
        ("test_lmdb", ("--split", "test"), "lsun_all"),
    ],
)
@pytest.mark.parametrize("above", [True, False])
def test_lsun_has_thirty_categories_and_a_test_split(
    folder: str, options: tuple[str, ...], name: str, above: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lsun(tmp_path / folder, {b"k\xff": PNG, b"empty": b"", b"text": b"hello"})
    source = tmp_path if above else tmp_path / folder
    assert prepare("lsun", monkeypatch, "--source", source, "--out", tmp_path / "out", *options) == 0
    index = open_index(str(tmp_path / "out"))
    assert index.name == name and [entry["source"] for entry in facts(index)] == ["k\\xff"]
    listed = json.loads((tmp_path / "out" / "unreadable.json").read_text())
    assert [entry["source"] for entry in listed] == ["empty", "text"]


def test_lsun_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str, source: Path, *options: str) -> None:
        with pytest.raises(UserError, match=message):
            prepare("lsun", monkeypatch, "--source", source, "--out", tmp_path / "out", *options)

    write_lsun(tmp_path / "cat", {b"key": PNG})
    write_lsun(tmp_path / "test_lmdb", {b"key": PNG})
    (tmp_path / "packed").mkdir()
    packed = tmp_path / "packed" / "church_outdoor_train_lmdb.zip"
    packed.write_bytes(b"PK")
    refused("got cat, expected church_outdoor_train_lmdb", tmp_path / "cat")
    refused("got test_lmdb, expected church_outdoor_train_lmdb", tmp_path / "test_lmdb")
    refused("train, the only part of LSUN's cat", tmp_path, "--category", "cat", "--split", "val")
    refused("got cat with --split test, expected no category", tmp_path, "--category", "cat", "--split", "test")
    refused("church_outdoor_train_lmdb.zip, which is not unpacked", tmp_path / "packed")
    refused("church_outdoor_train_lmdb.zip, which is not unpacked", packed)


def test_a_damaged_page_of_an_lmdb_is_found_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "church_outdoor_train_lmdb"
    write_lsun(database, {f"{number:040x}".encode(): bytes([number]) * 900 for number in range(60)})
    path = database / "data.mdb"
    whole, ended = path.read_bytes(), set()
    pages = [page for page in range(2, len(whole) // 4096) if whole[page * 4096 + 10] & 0x02]
    # The flags of a leaf, its bounds, and all of it.
    for at, junk in ((10, b"\x00\x00"), (10, b"\x01\x00"), (12, b"\xff\xff\xff\xff"), (0, bytes(4096))):
        start = pages[1] * 4096 + at
        path.write_bytes(whole[:start] + junk + whole[start + len(junk) :])
        with pytest.raises(UserError, match="no readable LMDB database") as caught:
            prepare("lsun", monkeypatch, "--source", database, "--out", tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
        ended.add(str(caught.value))
    # One of these kinds makes LMDB end its own process.
    assert any("Assertion" in message for message in ended), ended


@pytest.mark.slow
def test_a_value_of_an_lmdb_that_reaches_beyond_its_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "church_outdoor_train_lmdb"
    write_lsun(database, {b"first": bytes(9000), b"second": bytes(9000)})
    whole = (database / "data.mdb").read_bytes()
    entry = whole.rindex(b"second") - 8
    assert int.from_bytes(whole[entry : entry + 4], "little") == 9000
    (database / "data.mdb").write_bytes(whole[:entry] + len(whole).to_bytes(4, "little") + whole[entry + 4 :])
    # The process that reads the value is ended by a signal.
    with pytest.raises(UserError, match=r"worker process: got an unexpected end.*the database is damaged"):
        prepare("lsun", monkeypatch, "--source", database, "--out", tmp_path / "out", "--workers", 1)


# CIFAR-10 and Fashion-MNIST


def test_archives_of_records_that_are_damaged_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, source: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            prepare(name, monkeypatch, "--source", source, "--out", tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    archive = tmp_path / "cifar-10-binary.tar.gz"
    write_cifar10(archive, 2)
    archive.write_bytes(archive.read_bytes()[:-3000])
    refused("cifar10", archive, "no readable archive|without test_batch|without data_batch")
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    write_fashion(plain, 3, packed=False)
    write_fashion(packed, 3, packed=True)
    images = packed / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for data in (whole[:-20], whole + b"garbage", gzip.compress(gzip.decompress(whole) + b"x"), b"", b"hello"):
        images.write_bytes(data)
        refused("fashion_mnist", packed, "train-images-idx3-ubyte.gz")
    labels = plain / "train-labels-idx1-ubyte"
    labels.write_bytes((plain / "train-images-idx3-ubyte").read_bytes())
    refused("fashion_mnist", plain, "an idx header of magic 0x803")


# Pictures of all three


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "celeba", "lsun"])
def test_deep_transparent_and_turned_images_are_treated_alike(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given: started.append(given))
    clear = np.zeros((218, 178, 4), np.uint8)
    clear[:, :, 3] = 51
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    two = np.zeros((218, 178, 3), np.uint8)
    two[109:] = 200
    Image.fromarray(two).save(turned, "PNG", exif=exif)
    script = io.BytesIO()
    Image.fromarray(two).save(script, "EPS")
    values = [
        encoded(np.full((218, 178), 257 * 77, np.uint16), "PNG"),
        encoded(clear, "PNG"),
        turned.getvalue(),
        script.getvalue(),
    ]
    source = tmp_path / "source"
    if name == "lsun":
        write_lsun(source / "church_outdoor_train_lmdb", {bytes([number]): data for number, data in enumerate(values)})
    else:
        write_celeba(source, [0] * len(values), packed=False)
        for number, data in enumerate(values, start=1):
            (source / "img_align_celeba" / f"{number:06d}.jpg").write_bytes(data)
    out = tmp_path / "out"
    given = ("--source", source, "--out", out, "--resolution", 4)
    assert prepare(name, monkeypatch, *given, "--background", "255,0,100") == 0
    index = open_index(str(out))
    assert not started
    assert index.made_by["treated"] == {depth.SCALED: 1, pictures.TRANSPARENT: 1}
    assert [entry["position"] for entry in json.loads((out / "unreadable.json").read_text())] == [3]
    grey, shown, upright = read_images(index, 9).numpy()
    assert (grey == 77).all()
    # One fifth black.
    assert (shown == np.array([204, 0, 80])[:, None, None]).all()
    assert (upright[:, 0] == 200).all() and (upright[:, -1] == 0).all()
    assert last_line(capsys).startswith("Left out: 1 that could not be read")
    with pytest.raises(UserError, match="background: "):
        prepare(name, monkeypatch, *given)


@pytest.mark.parametrize("packed", [True, False])
def test_lack_of_memory_is_no_damage_of_an_image(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    write_celeba(tmp_path / "celeba", [0, 0], packed=packed)
    where = (zipfile.ZipFile, "read") if packed else (import_module("datasets_prep._files"), "read_file")
    monkeypatch.setattr(*where, fail)
    with pytest.raises(UserError, match=r"image 000001\.jpg: got too little memory"):
        prepare("celeba", monkeypatch, "--source", tmp_path / "celeba", "--out", tmp_path / "out")
