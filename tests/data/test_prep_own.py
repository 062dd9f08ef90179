"""Folders of anybody's images: classes, crops of mixed sizes, and a split by content that additions do not move."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from datasets_prep._own import Cut, class_names, is_first
from drl_dist.common.errors import UserError
from drl_dist.data.index import CLASS_COUNTS, open_index
from tests.data.published import encoded, photo
from tests.data.sets import rewritten
from tests.helpers.preparation import facts, prepare

Prepare = Callable[..., Path]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Thirty photographs of mixed sizes in two classes, each another one."""
    folder = tmp_path / "photos"
    for number in range(30):
        path = folder / ("cats" if number % 3 else "dogs/big") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 20 + number % 5, 18 + number % 7), "PNG"))
    return folder


@pytest.fixture
def folder_prepared(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    def run(*options: object, out: str = "out") -> Path:
        words = ("--source", photos, "--out", tmp_path / out, "--resolution", 16, "--shard-size", 8)
        assert prepare("folder", monkeypatch, *words, *options) == 0
        return tmp_path / out

    return run


def names_in(folder: Path) -> list[str]:
    return [str(entry["source"]) for entry in facts(open_index(str(folder)))]


def test_subfolders_are_classes_in_the_samples_and_in_the_index(folder_prepared: Prepare) -> None:
    out = folder_prepared()
    index = open_index(str(out))
    assert (index.classes, index.class_counts) == (("cats", "dogs"), (20, 10))
    for entry in facts(index):
        assert entry["label"] == ("dogs" in str(entry["source"]))
    # As any reader of WebDataset sees them.
    shards = [str(out / row.name) for row in index.shards]
    labels = [json.loads(sample["json"])["label"] for sample in wds.WebDataset(shards, shardshuffle=False)]
    assert np.bincount(labels).tolist() == [20, 10]
    before = {path: path.read_bytes() for path in out.iterdir()}
    folder_prepared()
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_name_may_have_hyphens_as_those_of_runs(folder_prepared: Prepare) -> None:
    index = open_index(str(folder_prepared("--name", "cats-and-dogs")))
    assert (index.name, index.shards[0].name) == ("cats-and-dogs", "cats-and-dogs-train-00000.tar")
    assert len(facts(index)) == 30


def test_an_unreadable_image_is_in_no_count(folder_prepared: Prepare, photos: Path) -> None:
    (photos / "dogs" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    index = open_index(str(folder_prepared()))
    assert (index.class_counts, index.num_samples, index.made_by["unreadable"]) == ((20, 10), 30, 1)


@pytest.mark.parametrize(("labels", "classes"), [("auto", ()), ("none", ())])
def test_an_image_outside_of_the_classes_leaves_all_without(
    labels: str, classes: tuple[str, ...], folder_prepared: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "one.png").write_bytes(encoded(photo(99, 20, 20), "PNG"))
    index = open_index(str(folder_prepared("--labels", labels)))
    assert index.classes == classes == index.class_counts
    assert not any("label" in entry for entry in facts(index))
    said = "No labels: one.png lies in no subfolder; move it, or give --labels none."
    assert (said in capsys.readouterr().err) == (labels == "auto")
    with pytest.raises(UserError, match=r"^--labels: got folders, but one\.png lies in no subfolder"):
        folder_prepared("--labels", "folders", out="other")
    assert "Traceback" not in capsys.readouterr().err


def test_images_outside_of_the_classes_are_counted_where_subfolders_may_be_classes(
    folder_prepared: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.png", "two.png"):
        (photos / name).write_bytes(encoded(photo(99, 20, 20), "PNG"))
    folder_prepared()
    said = "No labels: 2 images, such as one.png, lie in no subfolder; move them, or give --labels none."
    assert said in capsys.readouterr().err
    # A folder of originals beside the pictures is no class.
    (photos / "cats").rename(photos / "dogs" / "more")
    folder_prepared(out="other")
    assert "No labels" not in capsys.readouterr().err


def test_metadata_without_the_column_of_the_classes_are_told(
    folder_prepared: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "metadata.csv").write_text("file_name,mood\ncats/01.png,a\n")
    assert open_index(str(folder_prepared())).classes == ("cats", "dogs")
    said = (
        "No labels from metadata.csv: its columns beside file_name are mood; --label-column names that of the classes"
    )
    assert said in capsys.readouterr().err


def test_parts_of_a_data_set_are_no_classes(
    folder_prepared: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cats").rename(photos / "train")
    (photos / "dogs").rename(photos / "test")
    assert open_index(str(folder_prepared())).classes == ()
    assert "No labels: the subfolders test, train are parts of a data set; --source" in capsys.readouterr().err
    assert open_index(str(folder_prepared("--labels", "folders", out="wanted"))).classes == ("test", "train")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_beside_the_images_has_their_classes(kind: str, folder_prepared: Prepare, photos: Path) -> None:
    files = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    rows = [{"file_name": name, "label": str(10 - number % 9), "mood": "a"} for number, name in enumerate(files)]
    text = (
        "file_name,label,mood\n" + "".join(f"{row['file_name']},{row['label']},a\n" for row in rows)
        if kind == "csv"
        else "".join(json.dumps(row) + "\n" for row in rows)
    )
    (photos / f"metadata.{kind}").write_text(text)
    index = open_index(str(folder_prepared()))
    assert index.classes == tuple(map(str, range(2, 11)))
    assert {entry["source"]: index.classes[int(str(entry["label"]))] for entry in facts(index)} == {
        row["file_name"]: row["label"] for row in rows
    }
    # Other classes of the same images are other data.
    (photos / f"metadata.{kind}").write_text(text.replace(",10,", ",2,").replace('"10"', '"2"'))
    with pytest.raises(UserError, match=r"data prepared with other options or from another source"):
        folder_prepared()
    assert open_index(str(folder_prepared("--label-column", "mood", out="moods"))).classes == ("a",)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("file_name,label\ncats/01.png,a\n", (), r"got no class of 29 images \(the first: cats/02\.png\)"),
        ("file_name,kind\n", ("--labels", "metadata"), "got the columns file_name, kind, expected file_name and label"),
        ("file_name,label\ncats/01.png,a,b\n", (), r"a row of another length than the first for cats/01\.png"),
        ("file_name,label,label\ncats/01.png,a,b\n", (), "got 2 columns label, expected one column of each name"),
        ("file_name,label\ncats/01.png, \n", (), "got no class of 30 images"),
        ("name,label\na,b\n", ("--labels", "metadata"), "got the columns name, label, expected file_name and label"),
        ("file_name,label\ncats/01.png,a\ncats/01.png,b\n", (), r"got two classes of cats/01\.png"),
        ('file_name,label\n"cats', (), "unexpected end of data"),
        ("\udcff", (), "got 'utf-8' codec can't decode"),
    ],
)
def test_metadata_that_cannot_be_used_is_said(
    text: str, options: tuple[str, ...], said: str, folder_prepared: Prepare, photos: Path, tmp_path: Path
) -> None:
    (photos / "metadata.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=said):
        folder_prepared(*options)
    assert not (tmp_path / "out").exists()


def test_rows_that_no_image_is_there_for_are_told(
    folder_prepared: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    rows = [{"file_name": name, "label": f"{'ab'[number % 2]} \u2028"} for number, name in enumerate(files)]
    rows.append({"file_name": "cats/99.png", "label": "c"})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (photos / "metadata.jsonl").write_text(text)
    # Spaces around a name are no part of it.
    assert open_index(str(folder_prepared())).classes == ("a", "b")
    said = "The row of cats/99.png is not used: no such image is taken from the folder of metadata.jsonl."
    assert said in capsys.readouterr().err
    (photos / "metadata.jsonl").write_text(text.replace(f'"a {chr(0x2028)}"', '{"name": "a"}', 1))
    with pytest.raises(UserError, match=r"got the class \{'name': 'a'\} of cats/01\.png, expected a text or a number"):
        folder_prepared(out="other")


def test_metadata_that_is_wanted_must_be_there(folder_prepared: Prepare) -> None:
    with pytest.raises(UserError, match=r"^--labels: got metadata, but no metadata\.csv or metadata\.jsonl"):
        folder_prepared("--labels", "metadata")


def test_output_of_a_version_without_labels_stays_as_it_is(
    folder_prepared: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder_prepared("--labels", "none")
    before = {path: path.read_bytes() for path in out.iterdir()}
    # With classes now, it is recognised by what the earlier version took.
    folder_prepared()
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    printed = capsys.readouterr().err
    assert "already holds 30 images" in printed and "was begun without labels and stays without" in printed


def test_a_split_by_content_is_not_moved_by_further_images(folder_prepared: Prepare, photos: Path) -> None:
    out = folder_prepared("--split", ".8")
    first = {part: set(names_in(out / part)) for part in ("train", "test")}
    assert len(first["train"]) + len(first["test"]) == 30 and first["train"].isdisjoint(first["test"])
    assert all(open_index(str(out / part)).split == part for part in first)
    assert open_index(str(out / "test")).classes == ("cats", "dogs")
    for number in range(30, 60):
        (photos / "cats" / f"{number}.png").write_bytes(encoded(photo(number, 20, 20), "PNG"))
    # A copy goes where its original is, and a new name changes nothing.
    copied = sorted(first["test"])[0]
    shutil.copy(photos / copied, photos / "dogs" / "copy.png")
    moved = sorted(first["train"])[0]
    (photos / moved).rename(photos / "dogs" / "moved.png")
    out = folder_prepared("--split", "0.8", out="more")
    second = {part: set(names_in(out / part)) for part in ("train", "test")}
    assert first["train"] - {moved} < second["train"] and first["test"] < second["test"]
    assert "dogs/copy.png" in second["test"] and "dogs/moved.png" in second["train"]
    assert 0.6 < len(second["train"]) / 61 < 0.95


def test_a_split_resumes_and_refuses_another_share(
    folder_prepared: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder_prepared("--split", "0.5")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    folder_prepared("--split", "0.5")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert capsys.readouterr().err.count("nothing to do") == 2
    with pytest.raises(UserError, match="prepared with other options"):
        folder_prepared("--split", "0.6")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--split", "1.5"), r"^--split: got '1\.5', expected letters, digits and underscores, or a share between 0"),
        (("--split", "0.0"), r"^--split: got '0\.0'"),
        (("--split", "nan."), r"^--split: got 'nan\.'"),
        (("--split", "0.9999999"), r"^--split: got 0\.9999999 of 30 images, which leaves none for test"),
        (("--split", "0.9", "--shard-size", "0"), "^--shard-size: got 0"),
        (("--name", "a b"), "^--name: got 'a b', expected letters"),
        (("--name", "a.b"), "^--name: got 'a.b', expected letters"),
        (("--name=-a",), "^--name: got '-a', expected letters.* not beginning with '-'"),
        (("--min-side", "-1"), "^--min-side: got -1, expected 0 or more"),
        (("--crop", "left"), "option --crop: got left, expected one of center, top, none, pad"),
        (("--labels", "some"), "option --labels: got some, expected one of auto"),
        (("--background", "sky", "--crop", "pad"), "^--background: got 'sky'"),
    ],
)
def test_what_no_folder_can_be_made_of_is_said(
    options: tuple[object, ...], said: str, folder_prepared: Prepare, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        folder_prepared(*options)
    assert not (tmp_path / "out").exists()


def test_the_share_is_that_of_the_checksums() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    contents = [generator.bytes(8) for _ in range(4000)]
    assert np.mean([is_first(content, 0.9) for content in contents]) == pytest.approx(0.9, abs=0.02)
    # A larger share keeps all of a smaller one.
    assert all(is_first(content, 0.9) for content in contents if is_first(content, 0.5))
    assert is_first(bytes(8), 0.001)


@pytest.mark.parametrize(
    ("crop", "wide", "tall"),
    [
        # Of columns, or rows, of red, green and blue: where the square is, by what is in its corners.
        ("center", "gg", "gg"),
        ("top", "gg", "rr"),
        ("none", "rb", "rb"),
        ("pad", "ww", "ww"),
    ],
)
def test_crops_of_images_that_are_not_square(crop: str, wide: str, tall: str) -> None:
    colours = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255)}
    stripes = np.repeat([colours[name] for name in "rgb"], 10, axis=0).astype(np.uint8)[None].repeat(10, axis=0)
    for pixels, corners in ((stripes, wide), (stripes.transpose(1, 0, 2), tall)):
        square = Cut(crop)(Image.fromarray(np.ascontiguousarray(pixels)))  # pyright: ignore
        assert crop == "none" or square.width == square.height
        found = [square.getpixel((0, 0)), square.getpixel((square.width - 1, square.height - 1))]
        assert found == [colours[name] for name in corners]
    if crop == "pad":
        grey = Cut("pad", background=(10, 10, 10))(Image.new("L", (4, 2), 200))
        assert np.asarray(grey).tolist() == [[10] * 4, [200] * 4, [200] * 4, [10] * 4]


def test_small_images_are_left_out_on_request(
    folder_prepared: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cats" / "icon.png").write_bytes(encoded(photo(77, 8, 40), "PNG"))
    out = folder_prepared("--min-side", "16", "--crop", "pad")
    listed = json.loads((out / "unreadable.json").read_text())
    assert [entry["reason"] for entry in listed] == ["40x8 pixels, less than --min-side 16"]
    made = open_index(str(out)).made_by
    assert (made["crop"], made["min_side"]) == ("pad", 16)
    # It could be read, and is counted by itself.
    assert (made["unreadable"], made["small"]) == (0, 1)
    printed = capsys.readouterr().err
    assert "1 image is smaller than --min-side and is left out; unreadable.json lists them:" in printed
    assert "Left out: 1 smaller than --min-side (unreadable.json lists them)" in printed
    assert "could not be read" not in printed
    folder_prepared("--min-side", "16", "--crop", "pad")
    assert "Left out: 1 smaller than --min-side" in capsys.readouterr().err
    (photos / "cats" / "broken.png").write_bytes(b"no image")
    folder_prepared("--min-side", "16", out="both")
    assert "Left out: 1 that could not be read and 1 smaller than --min-side (unr" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"none readable and large enough .*; choose a smaller --min-side; nothing was"):
        folder_prepared("--min-side", "1600", out="none")


def test_a_size_without_a_network_is_said_where_it_is_made(
    folder_prepared: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_prepared("--resolution", "37")
    printed = capsys.readouterr().err
    assert "\nOnly a network of your own can be trained on what this prepares. resolution of the images: " in printed
    assert "prepare the data with --resolution 36 or 40. (Ctrl-C ends this command.)\n" in printed


def test_one_is_one_and_the_folder_is_named_in_full(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(photos.rglob("*.*"))[2:]:
        path.unlink()
    sorted(photos.rglob("*.*"))[0].write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    for said in (
        f"{tmp_path}/out: 1 image of 8x8 in 1 shard, ",
        f"{tmp_path}/out already holds 1 image; nothing to do.",
    ):
        assert prepare("folder", monkeypatch, "--source", photos, "--out", "out", "--resolution", 8) == 0
        printed = capsys.readouterr().err
        assert said in printed
        assert "1 image could not be read and is left out; " in printed or "already" in said


def test_names_of_classes_are_in_their_order() -> None:
    assert class_names(["10", "2", "2"], "x") == ("2", "10")
    assert class_names(["b", "10", "a"], "x") == ("10", "a", "b")
    with pytest.raises(UserError, match=r"^x: got 100001 different ones"):
        class_names(map(str, range(100_001)), "x")


@pytest.mark.parametrize("counts", [None, [1], [20, -1], [20, "a"], [20, 11], "ab"])
def test_an_index_whose_classes_do_not_fit_is_refused(folder_prepared: Prepare, counts: object) -> None:
    out = folder_prepared()

    def change(metadata: dict[str, dict[str, object]], _columns: object) -> None:
        if counts is None:
            del metadata["made_by"][CLASS_COUNTS]
        else:
            metadata["made_by"][CLASS_COUNTS] = counts

    rewritten(out / "index.parquet", change)  # pyright: ignore
    with pytest.raises(UserError, match="classes that do not fit their counts"):
        open_index(str(out))
