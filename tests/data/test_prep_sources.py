"""Odd files in sources: one of them is one image, and whatever is left out is counted."""

from __future__ import annotations

import codecs
import errno
import gzip
import json
import os
import re
import socket
import threading
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

import datasets_prep._files as files_module
from datasets_prep._listing import counted, list_images, picture_suffixes
from datasets_prep.celeba import read_partition
from drl_dist.data.index import open_index
from drl_dist.errors import UserError
from tests.data.published import encoded, photo, write_celeba, write_cifar10, write_fashion, write_lsun
from tests.data.test_prep import facts, prepare

PNG = encoded(photo(1, 16, 16), "PNG")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def prepare_folder(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path) -> list[object]:
    """The names of the images that were taken."""
    assert prepare("folder", monkeypatch, "--source", source, "--out", out, "--resolution", 16) == 0
    return [entry["source"] for entry in facts(open_index(str(out)))]


def write_all(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)


def test_what_is_left_out_is_counted_by_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "photos", tmp_path / "out"
    taken = ["a.png", "b/UPPER.PNG"]
    write_all(source, *taken, "b.heic", "c.HEIC", "d.jxl", "noSuffix", "notes.txt", ".hidden.png", "._a.png")
    write_all(source, "@eaDir/a.png", "b/@eaDir/x/y.png", ".ipynb_checkpoints/a.png", "__MACOSX/._a.png")
    write_all(
        source, ".git/a.png", "lost+found/a.png", "$RECYCLE.BIN/a.png", ".Trash-0/a.png", "Thumbs.db", ".DS_Store"
    )
    write_all(tmp_path / "elsewhere", "linked.png", "inside/deep.png")
    (source / "z.png").symlink_to(tmp_path / "elsewhere" / "linked.png")
    (source / "folder").symlink_to(tmp_path / "elsewhere" / "inside")
    (source / "loop").symlink_to(source)
    (source / "nothing.png").symlink_to(tmp_path / "nowhere")
    (source / "circle.png").symlink_to(source / "circle.png")
    os.mkfifo(source / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(source)
        server.bind("socket.png")
        assert prepare_folder(monkeypatch, source, out) == [*taken, "z.png"]
    assert list_images(source)[0].left_out == {
        ".heic (Pillow cannot read it)": 2,
        ".jxl (Pillow cannot read it)": 1,
        "hidden": 3,
        "in @eaDir": 2,
        "in .ipynb_checkpoints": 1,
        "in __MACOSX": 1,
        "in .git": 1,
        "in lost+found": 1,
        "in $RECYCLE.BIN": 1,
        "in .Trash-0": 1,
        "link to a folder (not followed)": 2,
        "link to nothing": 2,
        "pipe": 1,
        "socket": 1,
        "without a suffix": 1,
        ".txt": 1,
        ".db": 1,
    }
    line = last_line(capsys)
    # All of them, though the line names the first twelve kinds.
    numbers = [int(number) for number in re.findall(r"(?:^Left out: |, )(\d+) ", line)]
    assert line.startswith("Left out: ") and sum(numbers) == 23
    assert "2 .heic (Pillow cannot read it)" in line and "2 in @eaDir" in line
    assert prepare("folder", monkeypatch, "--source", source, "--out", out, "--resolution", 16) == 0
    assert last_line(capsys) == line


def test_the_line_of_kinds_names_pictures_first_and_adds_up_the_rest() -> None:
    kinds = {f".k{number:02d}": number + 1 for number in range(20)} | {".heic (Pillow cannot read it)": 1}
    line = counted(kinds)
    assert line.startswith("1 .heic (Pillow cannot read it), 20 .k19, 19 .k18")
    assert line.endswith("45 of 9 other kinds")
    assert counted({"link to nothing": 1, "device": 2, "in @eaDir": 0}) == "1 link to nothing, 2 devices"


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".avif", "AVIF"),
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".jp2", "JPEG2000"),
        (".pgm", "PPM"),
        (".pbm", "PPM"),
        (".tga", "TGA"),
        (".ico", "ICO"),
        (".apng", "PNG"),
        (".qoi", "QOI"),
        (".webp", "WEBP"),
        (".pcx", "PCX"),
    ],
)
def test_pictures_that_pillow_reads_are_taken(
    suffix: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert suffix in picture_suffixes()
    source = tmp_path / "photos"
    source.mkdir()
    image = Image.fromarray(photo(1, 16, 16))
    (image.convert("L") if suffix == ".pgm" else image.convert("1") if suffix == ".pbm" else image).save(
        source / f"a{suffix}", format=kind
    )
    assert prepare_folder(monkeypatch, source, tmp_path / "out") == [f"a{suffix}"]


def test_a_name_does_not_choose_a_decoder_that_starts_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "photos"
    write_all(source, "a.png")
    Image.fromarray(photo(1, 16, 16)).save(source / "b.jpg", format="EPS")
    assert prepare_folder(monkeypatch, source, tmp_path / "out") == ["a.png"]
    (listed,) = json.loads((tmp_path / "out" / "unreadable.json").read_text())
    assert "cannot identify" in listed["reason"]
    assert not {".eps", ".ps", ".pdf", ".wmf", ".mpg", ".h5", ".pfm"} & picture_suffixes()


def test_a_picture_pillow_was_built_without_is_told_of_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets_prep._listing.features.check", lambda feature: feature != "avif")
    assert ".avif" not in picture_suffixes() and ".webp" in picture_suffixes()


def test_a_source_that_is_left_out_whole_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "photos"
    write_all(source, "a.heic", "b.heic", "@eaDir/a.png")
    with pytest.raises(UserError, match=r"no image that is taken, but .*2 \.heic \(Pillow cannot read it\)") as caught:
        prepare("folder", monkeypatch, "--source", source, "--out", tmp_path / "out")
    assert "1 in @eaDir" in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_are_no_utf8_survive_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name, data in ((b"caf\xe9.png", PNG), (b"damaged\xff\n\x1b[31m.png", b"hello"), (b"\xc3\xa9.png", PNG)):
        (tmp_path / "photos" / os.fsdecode(name)).write_bytes(data)
    for _ in range(2):
        names = prepare_folder(monkeypatch, tmp_path / "photos", tmp_path / "out")
        assert names == ["caf\\xe9.png", "é.png"]
    (listed,) = json.loads((tmp_path / "out" / "unreadable.json").read_bytes())
    assert listed["source"] == "damaged\\xff\n\x1b[31m.png"
    shown = capsys.readouterr().err
    assert "damaged\\xff\\n\\x1b[31m.png: " in shown and "\x1b" not in shown


def test_what_may_not_be_read_is_one_image_or_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "photos", tmp_path / "out"
    write_all(source, "a.png", "closed.png", "shut/inside.png")
    scandir, opened = os.scandir, files_module._open_at_once

    def refuse(path: object) -> None:
        # By hand, since root may read everything.
        if str(path).endswith(("closed.png", "shut")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "scandir", lambda path: (refuse(path), scandir(path))[1])
    with monkeypatch.context() as patch:
        patch.setattr(files_module, "_open_at_once", lambda path, flags: (refuse(path), opened(path, flags))[1])
        assert prepare_folder(monkeypatch, source, out) == ["a.png"]
    (listed,) = json.loads((out / "unreadable.json").read_text())
    assert listed["source"] == "closed.png" and listed["reason"] == "PermissionError: [Errno 13] Permission denied"
    line = last_line(capsys)
    assert "1 that could not be read" in line and "1 folder that cannot be listed (Permission denied)" in line
    # Once it may be read, it is not what was prepared, though nothing about the file has changed.
    with pytest.raises(UserError, match=r"first that changed: closed\.png"):
        prepare_folder(monkeypatch, source, out)


def test_a_pipe_that_took_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    began = threading.Event()

    def write() -> None:
        # Opens only if somebody reads from it as from a pipe; so that a failure is no hang.
        began.wait(5)
        with suppress(OSError):
            os.close(os.open(tmp_path / "a.png", os.O_WRONLY | os.O_NONBLOCK))

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    with pytest.raises(ValueError, match="no regular file any more"):
        files_module.read_file(tmp_path / "a.png")
    assert not began.is_set() and thread.is_alive()
    began.set()


def test_copies_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path / "photos", "a.png", "b.png", "c.png")
    prepare_folder(monkeypatch, tmp_path / "photos", tmp_path / "out")
    shown = capsys.readouterr().err
    assert "2 of them have the same bytes as another one" in shown and shown.endswith("Left out: nothing.\n")


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


def test_a_damaged_page_of_an_lmdb_is_told_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "church_outdoor_train_lmdb"
    write_lsun(database, {f"{number:040x}".encode(): bytes([number]) * 900 for number in range(60)})
    path = database / "data.mdb"
    whole, ended = path.read_bytes(), set()
    pages = [page for page in range(2, len(whole) // 4096) if whole[page * 4096 + 10] & 0x02]
    # The flags of a leaf, its bounds, and all of it.
    for at, junk in ((10, b"\x00\x00"), (10, b"\x01\x00"), (12, b"\xff\xff\xff\xff"), (0, bytes(4096))):
        start = pages[1] * 4096 + at
        path.write_bytes(whole[:start] + junk + whole[start + len(junk) :])
        with pytest.raises(UserError, match="no sound LMDB database") as caught:
            prepare("lsun", monkeypatch, "--source", database, "--out", tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
        ended.add(str(caught.value))
    # One of these kinds makes LMDB end its own process.
    assert any("Assertion" in message for message in ended), ended


# CIFAR-10 and Fashion-MNIST


def test_archives_of_records_that_are_damaged_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, source: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            prepare(name, monkeypatch, "--source", source, "--out", tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    archive = tmp_path / "cifar-10-binary.tar.gz"
    write_cifar10(archive, 2)
    archive.write_bytes(archive.read_bytes()[:-3000])
    refused("cifar10", archive, "no sound archive|without test_batch|without data_batch")
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
