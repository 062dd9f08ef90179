"""A source that changes between two starts of a preparation, or during one, and folders of earlier versions."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

import datasets_prep._build as build_module
import datasets_prep._files as files_module
from drl_dist.common.errors import UserError
from drl_dist.data.decode import read_images
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, open_index, write_index
from drl_dist.data.shards import Sample, ShardRow, encode_png, pack_shard
from tests.data.published import encoded, photo, write_celeba, write_cifar10, write_lsun
from tests.helpers.preparation import kill_after, prepare

Prepare = Callable[[], int]


def write_photos(folder: Path, seeds: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"{number}.bmp").write_bytes(encoded(photo(seed, 16, 16), "BMP"))


def preparing(
    monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, name: str = "folder", *options: object
) -> Prepare:
    return lambda: prepare(
        name, monkeypatch, "--source", source, "--out", out, "--resolution", 16, "--shard-size", 2, *options
    )


def reread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that are read from now on."""
    read: list[str] = []
    original = files_module.read_file

    def spy(path: Path, size: int | None = None) -> tuple[bytes, bytes]:
        read.append(path.name)
        return original(path, size)

    monkeypatch.setattr(files_module, "read_file", spy)
    return read


def test_an_image_changed_in_place_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")
    write_photos(tmp_path / "photos", [1, 2, 3])
    assert run() == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    changed = tmp_path / "photos" / "1.bmp"
    found = changed.stat()
    changed.write_bytes(encoded(photo(7, 16, 16), "BMP"))
    # As `cp -p` and `rsync -t` leave it: the size and the time of the old one.
    os.utime(changed, ns=(found.st_atime_ns, found.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(UserError, match=r"the first that changed: 1\.bmp\).*choose another --out") as caught:
            run()
        assert "\n" not in str(caught.value)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    changed.write_bytes(encoded(photo(2, 16, 16), "BMP"))
    assert run() == 0


def test_what_is_touched_or_copied_elsewhere_is_read_once_and_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", [1, 2, 3])
    assert preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")() == 0
    index = (tmp_path / "out" / "index.parquet").read_bytes()
    read = reread(monkeypatch)
    os.utime(tmp_path / "photos" / "2.bmp")
    assert preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")() == 0
    assert read == ["2.bmp"]
    shutil.copytree(tmp_path / "photos", tmp_path / "copy", copy_function=shutil.copyfile)
    time.sleep(2 * files_module.FINE_SETTLES)
    read.clear()
    assert preparing(monkeypatch, tmp_path / "copy", tmp_path / "out")() == 0
    assert read == ["0.bmp", "1.bmp", "2.bmp"]
    read.clear()
    assert preparing(monkeypatch, tmp_path / "copy", tmp_path / "out")() == 0
    assert read == [] and "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "out" / "index.parquet").read_bytes() == index


def test_after_a_kill_no_old_image_stays_beside_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", [1, 2, 3, 4, 5, 6])
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")()
    (tmp_path / "photos" / "3.bmp").write_bytes(encoded(photo(8, 16, 16), "BMP"))
    assert preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")() == 0
    shown = capsys.readouterr().err
    assert "2 shards finished" in shown and "1 finished shard made again" in shown and "first: 3.bmp" in shown
    images = read_images(open_index(str(tmp_path / "out")), 9).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(images, [photo(seed, 16, 16) for seed in (1, 2, 3, 8, 5, 6)])


def test_an_image_replaced_while_shards_are_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", [1, 2, 3, 4])
    original = build_module._make_shard

    def replacing(task: build_module._Task) -> tuple[int, dict[str, object]]:
        made = original(task)
        if task.number == 1:
            write_photos(tmp_path / "photos", [11, 12, 13, 14])
        return made

    monkeypatch.setattr(build_module, "_make_shard", replacing)
    assert preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")() == 0
    assert "2 finished shards made again" in capsys.readouterr().err
    images = read_images(open_index(str(tmp_path / "out")), 9).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(images, [photo(seed, 16, 16) for seed in (11, 12, 13, 14)])


def test_images_that_never_stay_the_same_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", [1, 2])
    original, seeds = build_module._make_shard, iter(range(100))

    def replacing(task: build_module._Task) -> tuple[int, dict[str, object]]:
        made = original(task)
        write_photos(tmp_path / "photos", [next(seeds) + 50, 2])
        return made

    monkeypatch.setattr(build_module, "_make_shard", replacing)
    with pytest.raises(UserError, match=r"images that change while they are prepared \(such as 0\.bmp\)"):
        preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")()
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_what_vanishes_or_grows_after_the_listing_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", [1, 2, 3, 4])
    original = build_module._make_shard

    def disturbing(task: build_module._Task) -> tuple[int, dict[str, object]]:
        (tmp_path / "photos" / "1.bmp").unlink(missing_ok=True)
        (tmp_path / "photos" / "2.bmp").write_bytes(encoded(photo(3, 20, 20), "BMP"))
        return original(task)

    monkeypatch.setattr(build_module, "_make_shard", disturbing)
    assert preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")() == 0
    listed = json.loads((tmp_path / "out" / "unreadable.json").read_text())
    assert [entry["source"] for entry in listed] == ["1.bmp", "2.bmp"]
    assert "No such file" in listed[0]["reason"] and "when the source was listed" in listed[1]["reason"]


@pytest.mark.slow
def test_an_lmdb_with_the_same_keys_and_lengths_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "church_outdoor_train_lmdb"
    keys = [f"{number:040x}".encode() for number in range(3)]
    write_lsun(database, {key: encoded(photo(place, 16, 16), "BMP") for place, key in enumerate(keys)})
    run = preparing(monkeypatch, database, tmp_path / "out", "lsun")
    assert run() == 0
    os.utime(database / "data.mdb")
    assert run() == 0
    shutil.copytree(database, tmp_path / "copy" / database.name)
    assert preparing(monkeypatch, tmp_path / "copy", tmp_path / "out", "lsun")() == 0
    with lmdb.open(str(database), map_size=2**28) as opened, opened.begin(write=True) as change:
        change.put(keys[2], encoded(photo(9, 16, 16), "BMP"))
    with pytest.raises(UserError, match=f"first that changed: {keys[2].decode()}"):
        run()


@pytest.mark.parametrize("packed", [True, False])
def test_a_face_replaced_by_one_of_its_size_is_recognised(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "celeba"
    write_celeba(source, [0, 0, 0], packed=packed)
    assert preparing(monkeypatch, source, tmp_path / "out", "celeba")() == 0

    def with_second(data: bytes, where: Path) -> None:
        if not packed:
            (where / "img_align_celeba" / "000002.jpg").write_bytes(data)
            return
        path = where / "img_align_celeba.zip"
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        found = path.stat()
        with zipfile.ZipFile(path, "w") as archive:
            for name, old in members.items():
                archive.writestr(name, data if name.endswith("000002.jpg") else old)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    if packed:
        data = zipfile.ZipFile(source / "img_align_celeba.zip").read("img_align_celeba/000002.jpg")
    else:
        data = (source / "img_align_celeba" / "000002.jpg").read_bytes()
    with_second(data, source)
    assert preparing(monkeypatch, source, tmp_path / "out", "celeba")() == 0
    # The same bytes from the archive and from the folder are the same images.
    other = tmp_path / "other"
    write_celeba(other, [0, 0, 0], packed=not packed)
    assert preparing(monkeypatch, other, tmp_path / "out", "celeba")() == 0
    with_second(data[:-1] + b"\x00", source)
    with pytest.raises(UserError, match=r"first that changed: 000002\.jpg"):
        preparing(monkeypatch, source, tmp_path / "out", "celeba")()


def test_cifar10_replaced_between_opening_and_making_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets_prep import _cifar
    from datasets_prep.sources.cifar10 import open_cifar10

    archive = tmp_path / "cifar-10-binary.tar.gz"
    write_cifar10(archive, 2)
    part = open_cifar10(archive, "train").part(0, 2)
    assert len(list(part.items())) == 2
    write_cifar10(archive, 3)
    _cifar.records_of.cache_clear()
    _cifar.digest_of_records.cache_clear()
    with pytest.raises(UserError, match="other content than at the start"):
        next(part.items())


# From here on: folders as the version before this comparison wrote them.


def earlier_shard(source: Path, names: list[str], first: int) -> tuple[bytes, ShardRow]:
    samples = []
    for place, name in enumerate(names, start=first):
        pixels = np.asarray(Image.open(io.BytesIO((source / name).read_bytes())).convert("RGB")).transpose(2, 0, 1)
        samples.append(Sample(place, encode_png(pixels), {"source": name}))
    return pack_shard(f"images-train-{first // 2:05d}.tar", samples)


def earlier_parameters(source: Path, names: list[str]) -> dict[str, object]:
    digest = hashlib.sha256()
    for name in names:
        entry = f"{name} {(source / name).stat().st_size}".encode()
        digest.update(len(entry).to_bytes(8, "little") + entry)
    return {"source": digest.hexdigest(), "images": len(names), "resolution": 16, "shard_size": 2}


def write_earlier(source: Path, names: list[str], out: Path, *, finished: bool) -> ShardIndex:
    """All of a folder, or its first shard and the record of it."""
    parameters, rows = earlier_parameters(source, names), []
    for first in range(0, len(names), 2):
        data, row = earlier_shard(source, names[first : first + 2], first)
        rows.append(row)
        if finished or not first:
            Folder(str(out)).write(row.name, data)
    index = ShardIndex(
        url=str(out),
        name="images",
        split="train",
        resolution=16,
        channels=3,
        shards=tuple(rows),
        made_by=parameters | {"unreadable": 0},
    )
    if finished:
        write_index(index)
    else:
        records = Folder(str(out / "_progress"))
        identity = {"name": "images", "split": "train", "channels": 3} | parameters
        records.write("parameters.json", json.dumps(identity, sort_keys=True).encode())
        row = {
            "name": rows[0].name,
            "size": rows[0].size,
            "sha256": rows[0].sha256,
            "offsets": rows[0].offsets.tolist(),
        }
        records.write("00000.json", json.dumps({"row": row, "unreadable": []}).encode())
    return index


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("odd", [True, False])
def test_a_folder_of_an_earlier_version_is_recognised_and_resumed(
    finished: bool, odd: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "photos", tmp_path / "out"
    write_photos(source, [1, 2, 3, 4])
    (source / "4.png").write_bytes(encoded(photo(5, 16, 16), "PNG"))
    names = ["0.bmp", "1.bmp", "2.bmp", "3.bmp", "4.png"]
    if odd:
        # Both versions take another of these two.
        (source / ".hidden.png").write_bytes(encoded(photo(6, 16, 16), "PNG"))
        (source / "5.tga").write_bytes(encoded(photo(7, 16, 16), "TGA"))
        names = [".hidden.png", *names]
    expected = write_earlier(source, names, out, finished=finished)
    assert preparing(monkeypatch, source, out)() == 0
    shown = capsys.readouterr().err
    assert ("keeps its choice of files: 6 images, where this version takes 6" in shown) == odd
    assert ("could not be compared" if finished else "it is not known whether the content") in shown
    assert ("nothing to do" in shown) == finished
    assert "clipped" in shown and "colours of transparent pixels" in shown
    assert open_index(str(out)).fingerprint == expected.fingerprint
    assert preparing(monkeypatch, source, out)() == 0


def test_an_ordinary_folder_has_the_bytes_that_earlier_versions_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "photos"
    (source / "b").mkdir(parents=True)
    names = ["0.png", "1.jpg", "b/2.jpeg", "b/3.PNG"]
    for seed, name in enumerate(names):
        kind = "PNG" if name.lower().endswith("png") else "JPEG"
        (source / name).write_bytes(encoded(photo(seed, 16, 16), kind))
    expected = write_earlier(source, names, tmp_path / "earlier", finished=True)
    assert preparing(monkeypatch, source, tmp_path / "out")() == 0
    assert open_index(str(tmp_path / "out")).fingerprint == expected.fingerprint
    # The statistics are all that the index has besides.
    write_index(dataclasses.replace(open_index(str(tmp_path / "out")), statistics=None))
    for name in [row.name for row in expected.shards] + ["index.parquet"]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "earlier" / name).read_bytes(), name


def test_damaged_stamps_are_reported_and_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", [1, 2, 3])
    run = preparing(monkeypatch, tmp_path / "photos", tmp_path / "out")
    assert run() == 0
    assert run() == 0
    assert "earlier version" not in capsys.readouterr().err
    (tmp_path / "out" / "source.parquet").write_bytes(b"hello")
    assert run() == 0
    assert "content is could not be compared, since source.parquet is missing" in capsys.readouterr().err
