"""Odd files in sources: one of them is one image, and whatever is left out is counted."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

import datasets_prep._files as files_module
from datasets_prep._listing import counted_kinds, list_images, picture_suffixes
from drl_dist.common.errors import UserError
from drl_dist.data.index import open_index
from tests.data.published import photo
from tests.helpers.preparation import PNG, facts, last_line, prepare


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
    line = counted_kinds(kinds)
    assert line.startswith("1 .heic (Pillow cannot read it), 20 .k19, 19 .k18")
    assert line.endswith("45 of 9 other kinds")
    assert counted_kinds({"link to nothing": 1, "device": 2, "in @eaDir": 0}) == "1 link to nothing, 2 devices"


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
    # Without the address of a buffer, which no two runs share.
    assert listed["reason"] == "UnidentifiedImageError: cannot identify image file"
    assert not {".eps", ".ps", ".pdf", ".wmf", ".mpg", ".h5", ".pfm"} & picture_suffixes()


def test_a_format_pillow_was_built_without_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets_prep._listing.features.check", lambda feature: feature != "avif")
    assert ".avif" not in picture_suffixes() and ".webp" in picture_suffixes()


def test_a_source_that_is_left_out_whole_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "photos"
    write_all(source, "a.heic", "b.heic", "@eaDir/a.png")
    with pytest.raises(UserError, match=r"no usable image, but .*2 \.heic \(Pillow cannot read it\)") as caught:
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
        # A writer for code that waits for one, so that the test would fail instead of hanging.
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
    assert "\nCopies among these images (same bytes as an earlier one): 2.\n" in shown
    assert shown.endswith("Left out: nothing.\n")
