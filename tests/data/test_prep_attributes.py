"""Attributes of CelebA and of anybody's images: from the tables that they come in to samples and index."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from numpy.typing import NDArray

from datasets_prep._celeba_tables import read_attributes
from drl_dist.common.errors import UserError
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.stream import ShardStream
from tests.data.published import ATTRIBUTES, encoded, photo, write_celeba, write_celeba_attributes
from tests.helpers.preparation import contents, facts, kill_after, prepare

Run = Callable[..., Path]

PARTS = [0, 1, 0, 2, 0, 0]
TRAIN = [0, 2, 4, 5]
OFFICIAL, KAGGLE = "list_attr_celeba.txt", "list_attr_celeba.csv"


@pytest.fixture
def values() -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(0)).choice([-1, 1], (len(PARTS), len(ATTRIBUTES)))


@pytest.fixture
def celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Prepares six faces, for which each test writes the attributes."""
    write_celeba(tmp_path / "celeba", PARTS, packed=False)

    def run(*options: object, out: str = "out") -> Path:
        given = ("--source", tmp_path / "celeba", "--out", tmp_path / out, "--resolution", 8, "--shard-size", 2)
        assert prepare("celeba", monkeypatch, *given, *options) == 0
        return tmp_path / out

    return run


def attributes_in(index: ShardIndex) -> list[object]:
    """As any reader of WebDataset sees them."""
    shards = [f"{index.url}/{row.name}" for row in index.shards]
    return [json.loads(sample["json"])["attributes"] for sample in wds.WebDataset(shards, shardshuffle=False)]


@pytest.mark.parametrize("name", [OFFICIAL, KAGGLE])
def test_celebas_attributes_are_in_samples_and_index(
    name: str, celeba: Run, values: NDArray[np.int64], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_celeba_attributes(tmp_path / "celeba" / name, values)
    for split, wanted in (("train", TRAIN), ("val", [1]), ("test", [3])):
        index = open_index(str(celeba("--split", split, out=split)))
        assert index.attributes == ATTRIBUTES and len(index.attributes) == 40
        assert attributes_in(index) == values[wanted].tolist()
        assert index.attribute_counts == tuple((values[wanted] == 1).sum(0).tolist())
        assert not any("label" in entry for entry in facts(index)) and index.classes == ()
    assert "40 attributes: 0_o_Clock, 1_o_Clock, 2_o_Clock, " in (printed := capsys.readouterr().err)
    assert "No attributes" not in printed
    # The same table in its other form is the same, and training takes what was written.
    (tmp_path / "celeba" / name).unlink()
    write_celeba_attributes(tmp_path / "celeba" / ({OFFICIAL, KAGGLE} - {name}).pop(), values)
    before = contents(tmp_path / "train")
    celeba(out="train")
    assert contents(tmp_path / "train") == before and "nothing to do" in capsys.readouterr().err
    index = open_index(str(tmp_path / "train"))
    with ShardStream(index, seed=0, batch_size=4, labels="attributes") as stream:
        (batch,) = islice(stream, 1)
    assert batch.labels is not None
    assert sorted(batch.labels.tolist()) == sorted(values[TRAIN].tolist())


@pytest.mark.parametrize("place", ["celeba", "celeba/Anno", ".", "elsewhere"])
def test_the_table_is_found_beside_the_partition_or_named(
    place: str, celeba: Run, values: NDArray[np.int64], tmp_path: Path
) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    write_celeba_attributes(tmp_path / place / OFFICIAL, values)
    given = ("--attributes", tmp_path / place / OFFICIAL) if place == "elsewhere" else ()
    assert open_index(str(celeba(*given))).attributes == ATTRIBUTES


def test_the_table_is_found_beside_a_partition_elsewhere(
    celeba: Run, values: NDArray[np.int64], tmp_path: Path
) -> None:
    """As CelebA's authors lay them out: Eval/list_eval_partition.txt and Anno/list_attr_celeba.txt."""
    for folder in ("Eval", "Anno"):
        (tmp_path / "tables" / folder).mkdir(parents=True)
    partition = (tmp_path / "celeba" / "list_eval_partition.txt").rename(tmp_path / "tables/Eval/partition.txt")
    write_celeba_attributes(tmp_path / "tables/Anno" / OFFICIAL, values)
    assert open_index(str(celeba("--partition", partition))).attributes == ATTRIBUTES


def test_without_a_table_there_are_none_and_a_line_says_so(
    celeba: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    index = open_index(str(celeba()))
    assert (index.attributes, index.attribute_counts) == ((), ())
    assert not any("attributes" in entry for entry in facts(index))
    assert "No attributes: no list_attr_celeba.txt (or .csv) beside " in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^--attributes: got nowhere\.txt, expected the file list_attr_celeba\.txt"):
        celeba("--attributes", "nowhere.txt", out="other")
    assert not (tmp_path / "other").exists()


def test_an_unreadable_face_is_in_no_count(celeba: Run, values: NDArray[np.int64], tmp_path: Path) -> None:
    write_celeba_attributes(tmp_path / "celeba" / OFFICIAL, values)
    # All of the second shard, and with the first of them half of the first.
    for number in (3, 5, 6):
        (tmp_path / f"celeba/img_align_celeba/{number:06d}.jpg").write_bytes(b"\xff\xd8\xff")
    index = open_index(str(celeba()))
    assert index.num_samples == 1
    assert index.attribute_counts == tuple((values[0] == 1).astype(int).tolist())


@pytest.mark.parametrize("kaggle", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("000003.jpg", "000001.jpg"), "got the line '000001.jpg.*after another one for 00"),
        (lambda text: text.replace("000003.jpg", "000009.jpg"), r"no line for 1 image of the partition \(the first: 0"),
        (lambda text: text.replace("Young", "Young Old"), r"got the line '000001.jpg.*for each of 41 attributes"),
        (lambda text: text.replace("Young", "0_o_Clock"), "got the first lines '"),
        (lambda text: text.replace("000003.jpg", "000003.jpg 2"), "got the line '000003.jpg 2"),
        (lambda text: text.replace("-1", "0"), "got the line '00000.*with 1 or -1 for each of 40 attributes"),
        (lambda text: text[:-30], "got the line '000006.jpg|lines of images"),
        (lambda text: text[: text.index("000005.jpg")], "4 lines of images, expected 6 as|no line for 2 images"),
        (lambda text: text.partition("\n")[2], "got the first lines"),
        (lambda text: "", "got the first lines ''"),
        (lambda text: "\x89PNG\r\n", "got the first lines"),
        (lambda text: "000001.jpg 1\n", "got the first lines '000001.jpg 1'"),
    ],
)
def test_a_broken_table_of_attributes_is_one_sentence(
    kaggle: bool,
    change: Callable[[str], str],
    message: str,
    celeba: Run,
    values: NDArray[np.int64],
    tmp_path: Path,
) -> None:
    table = tmp_path / "celeba" / (KAGGLE if kaggle else OFFICIAL)
    write_celeba_attributes(table, values)
    table.write_text(change(table.read_text()))
    with pytest.raises(UserError, match=rf"^attributes .*list_attr_celeba.*(?:{message})") as caught:
        celeba()
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_an_official_table_that_ends_early_is_refused_even_where_nothing_is_missing(
    celeba: Run, values: NDArray[np.int64], tmp_path: Path
) -> None:
    table = tmp_path / "celeba" / OFFICIAL
    write_celeba_attributes(table, values)
    table.write_text(table.read_text()[: table.read_text().index("000005.jpg")])
    with pytest.raises(UserError, match="got 4 lines of images, expected 6 as its first line says"):
        celeba("--split", "val")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"2\nx y \na.jpg -1  1\nb.jpg  1 -1\n",
        b"image_id,x,y\na.jpg,-1,1\nb.jpg,1,-1\n",
        codecs.BOM_UTF8 + b'"image_id";"x";"y"\r\n"b.jpg";1;-1\r\n\r\n"a.jpg"; -1 ;"1"\r\n',
        "image,x,y\r\na.jpg,-1,1\r\nb.jpg,1,-1\r\n".encode("utf-16"),
        b"3\nx\ty\nc.jpg 1 1\na.jpg\t-1\t1\nb.jpg 1 -1",
    ],
)
def test_attributes_are_read_in_each_form_that_they_come_in(data: bytes) -> None:
    found = read_attributes(Path("x"), data, ["a.jpg", "b.jpg"])
    assert found.names == ("x", "y") and found.of == {"a.jpg": (-1, 1), "b.jpg": (1, -1)}
    assert found.digest == read_attributes(Path("y"), b"2\nx y\nb.jpg 1 -1\na.jpg -1 1", ["b.jpg", "a.jpg"]).digest


@pytest.mark.parametrize("finished", [True, False])
def test_faces_that_were_begun_without_attributes_stay_without(
    finished: bool,
    celeba: Run,
    values: NDArray[np.int64],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = contents(celeba(out="whole"))
    with monkeypatch.context() as patch:
        if not finished:
            kill_after(patch, 1)
            with pytest.raises(KeyboardInterrupt):
                celeba()
        else:
            celeba()
    write_celeba_attributes(tmp_path / "celeba" / OFFICIAL, values)
    capsys.readouterr()
    celeba()
    assert contents(tmp_path / "out") == whole
    printed = capsys.readouterr().err
    assert "was begun without attributes and stays without; choose another --out to have them." in printed
    assert ("nothing to do" if finished else "1 shard finished") in printed


def test_other_attributes_of_the_same_faces_are_other_data(
    celeba: Run, values: NDArray[np.int64], tmp_path: Path
) -> None:
    table = tmp_path / "celeba" / OFFICIAL
    write_celeba_attributes(table, values)
    before = contents(celeba())
    # Those of another part of the data set do not count.
    values[1] *= -1
    write_celeba_attributes(table, values)
    celeba()
    values[2, 7] *= -1
    write_celeba_attributes(table, values)
    with pytest.raises(UserError, match=r"\(attribute_values: others -> those found now\)"):
        celeba()
    table.write_text(table.read_text().replace("30_o_Clock", "Bald"))
    with pytest.raises(UserError, match=r"attributes: 40 \(…, 30_o_Clock, 31_o_Cl[^)]*, …\) -> 40 \(…, Bald, 31_o_"):
        celeba()
    table.unlink()
    with pytest.raises(UserError, match=r"attribute_values: others -> none, attributes: 40 \(0_o_.* -> none\)"):
        celeba()
    assert contents(tmp_path / "out") == before


def test_counts_are_those_of_all_shards_whenever_they_were_made(
    celeba: Run, values: NDArray[np.int64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_celeba_attributes(tmp_path / "celeba" / OFFICIAL, values)
    whole = contents(celeba(out="whole"))
    with monkeypatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            celeba()
    path = tmp_path / "out" / "_progress" / "00000.json"
    text = path.read_text()
    record = json.loads(text)
    assert record["attributes"] == (values[[0, 2]] == 1).sum(0).tolist()
    for broken in (record["attributes"][:-1], [-1, *record["attributes"][1:]], ["a"] * 40, 3, None):
        path.write_text(json.dumps(record | {"attributes": broken}))
        with pytest.raises(UserError, match="what a finished shard was made of, as JSON"):
            celeba()
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "attributes"}))
    with pytest.raises(UserError, match="what a finished shard was made of, as JSON"):
        celeba()
    path.write_text(text)
    celeba()
    assert contents(tmp_path / "out") == whole


# Folders


WORDS = {"1": 1, "true": 1, "Yes": 1, "0": -1, "-1": -1, "FALSE": -1, "no": -1, "": 0, " ": 0}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Prepares nine photographs in two classes; each test writes the metadata."""
    for number in range(len(WORDS)):
        path = tmp_path / "photos" / ("cats" if number % 3 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(number, 16, 16), "PNG"))

    def run(*options: object, out: str = "out") -> Path:
        given = ("--source", tmp_path / "photos", "--out", tmp_path / out, "--resolution", 8, "--shard-size", 4)
        assert prepare("folder", monkeypatch, *given, *options) == 0
        return tmp_path / out

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def write_metadata(folder: Path, kind: str) -> dict[str, list[int]]:
    """A table with all ways to say what is true, and what it says of `old` and `red` of each image."""
    images, words = names(folder), list(WORDS)
    pairs = [(word, words[(place + 4) % len(words)]) for place, word in enumerate(words)]
    if kind == "csv":
        lines = [f"./{image},{old},x,{red}" for image, (old, red) in zip(images, pairs, strict=True)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,old,title,red", *lines, ""]))
    else:
        as_json: dict[str, object] = {"1": 1, "true": True, "FALSE": False, "-1": -1, " ": None}
        rows = [
            {"file_name": image, "old": as_json.get(old, old), "red": as_json.get(red, red)}
            for image, (old, red) in zip(images, pairs, strict=True)
        ]
        rows[8].pop("old")
        rows += [{"old": "1"}, {"old": "0"}]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {image: [WORDS[old], WORDS[red]] for image, (old, red) in zip(images, pairs, strict=True)}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_columns_of_the_metadata_are_attributes_beside_the_classes(
    kind: str, photos: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = write_metadata(tmp_path / "photos", kind)
    out = photos("--attribute-columns", "red, old")
    index = open_index(str(out))
    assert (index.classes, index.class_counts) == (("cats", "dogs"), (6, 3))
    assert index.attributes == ("red", "old")
    for entry in facts(index):
        assert entry["attributes"] == expected[str(entry["source"])][::-1]
        assert entry["label"] == str(entry["source"]).startswith("dogs")
    assert index.attribute_counts == (3, 3)
    assert "2 attributes: red, old." in capsys.readouterr().err
    before = contents(out)
    photos("--attribute-columns", "red,old")
    assert contents(out) == before and "begun" not in capsys.readouterr().err
    for other in (("--attribute-columns", "old,red"), ("--attribute-columns", "red"), ()):
        with pytest.raises(UserError, match=r"attributes: 2 \(red, old\) -> "):
            photos(*other)
    # Attributes alone, and in both parts of a split.
    index = open_index(str(photos("--labels", "none", "--attribute-columns", "old", out="alone")))
    assert (index.classes, index.attributes) == ((), ("old",))
    # No earlier version can have begun it.
    with pytest.raises(UserError, match=r"\(classes: none -> 2 \(cats, dogs\)\)"):
        photos("--attribute-columns", "old", out="alone")
    parts = photos("--attribute-columns", "old", "--split", "0.5", out="parts")
    halves = [open_index(str(parts / part)) for part in ("train", "test")]
    assert sum(half.attribute_counts[0] for half in halves) == 3
    for half in halves:
        assert all(entry["attributes"] == expected[str(entry["source"])][:1] for entry in facts(half))


def test_a_table_may_have_the_classes_too(photos: Run, tmp_path: Path) -> None:
    images = names(tmp_path / "photos")
    rows = "".join(f"{image},{'ab'[place % 2]},{place % 3 - 1 or ''}\n" for place, image in enumerate(images))
    (tmp_path / "photos" / "metadata.csv").write_text("file_name,label,old\n" + rows)
    index = open_index(str(photos("--attribute-columns", "old")))
    assert (index.classes, index.class_counts) == (("a", "b"), (5, 4))
    assert (index.attributes, index.attribute_counts) == (("old",), (3,))
    found = {entry["source"]: (entry["label"], entry["attributes"]) for entry in facts(index)}
    assert found == {image: (place % 2, [place % 3 - 1]) for place, image in enumerate(images)}


def test_output_without_attributes_is_not_taken_for_one_with_them(photos: Run, tmp_path: Path) -> None:
    write_metadata(tmp_path / "photos", "csv")
    before = contents(photos())
    with pytest.raises(UserError, match=r"attribute_values: none -> those found now, attributes: none -> 1 \(old\)"):
        photos("--attribute-columns", "old")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("columns", "change", "message"),
    [
        ("old,new", str, r"got the columns file_name, old, title, red, expected file_name and old, new"),
        ("old", lambda text: text.replace("file_name", "file"), "got the columns file, old, title, red, expected"),
        ("old", lambda text: "", "got the columns none"),
        ("old", lambda text: "file_name,old\n", r"got no row of 9 images \(the first: cats/1\.png\)"),
        ("old", lambda text: text.replace("title", "old"), "got 2 columns old, expected one column of each name"),
        ("old", lambda text: text.replace("cats/1.png,1,x", "cats/1.png,1,x,y"), "a row of another length than the "),
        ("title", str, r"column title: got x for cats/1\.png, expected 1, true or yes, or 0, -1, false or no, or an"),
        ("old", lambda text: text.replace("cats/1.png,1", "cats/1.png,1.5"), r"column old: got 1\.5 for cats/1\.png"),
        ("old", lambda text: text.replace("cats/2.png,true", "cats/1.png,0"), r"different attributes of cats/1\.png"),
        ("old", lambda text: text.replace("cats/2.png", "cats/z.png"), r"no row of 1 image \(the first: cats/2\.png\)"),
        ("old", lambda text: text.replace("cats/2.png", "cats,2.png"), r"a row of another length .* for \./cats, "),
        ("old", lambda text: text.replace("cats/2.png,true,x,", "cats/2.png,"), "a row of another length than the "),
        ("old", lambda text: text.replace("title", '"title'), "got unexpected end of data"),
        ("old", lambda text: "\udcff" + text, "got 'utf-8' codec can't decode"),
        ("old,,red", str, "^--attribute-columns: got old,,red, expected names of different columns"),
        ("old,old", str, "^--attribute-columns: got old,old, expected names of different columns"),
        ("old", None, r"^--attribute-columns: got old, but no metadata\.csv or metadata\.jsonl in "),
    ],
)
def test_attributes_of_a_folder_that_cannot_be_used_are_one_sentence(
    columns: str,
    change: Callable[[str], str] | None,
    message: str,
    photos: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_metadata(tmp_path / "photos", "csv")
    table = tmp_path / "photos" / "metadata.csv"
    if change is None:
        table.unlink()
    else:
        table.write_bytes(change(table.read_text()).encode("utf-8", "surrogateescape"))
    # Nothing is said of classes, which a table of attributes need not have.
    with pytest.raises(UserError, match=message) as caught:
        photos("--attribute-columns", columns)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    assert capsys.readouterr().err == ""
