"""Images in tables: Parquet files and what Hugging Face's `datasets` writes, with classes, parts and damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datasets_prep._tables as tables_module
from datasets_prep._tables import open_table
from drl_dist.common.errors import UserError
from drl_dist.data.index import open_index
from tests.data.published import encoded, photo
from tests.helpers.preparation import facts, prepare

IMAGES = [encoded(photo(number, 20, 18 + number % 5), "JPEG") for number in range(24)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["cat", "dog", "owl"]
Prepare = Callable[..., Path]


def described(*names: str) -> dict[bytes, bytes]:
    """What `datasets` writes into a schema."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def table_of(numbers: Sequence[int], names: Sequence[str] = NAMES) -> pa.Table:
    schema = pa.schema([("id", pa.int64()), ("image", IMAGE), ("label", pa.int64())], metadata=described(*names))
    return pa.table(
        {
            "id": list(numbers),
            "image": [{"bytes": IMAGES[number], "path": f"{number}.jpg"} for number in numbers],
            "label": [number % 3 for number in numbers],
        },
        schema=schema,
    )


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A folder as the hub has it: two files of one part, one of another, and a page."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    pq.write_table(table_of(range(10)), folder / "train-00000-of-00002.parquet", row_group_size=4)
    pq.write_table(table_of(range(10, 18)), folder / "train-00001-of-00002.parquet", row_group_size=3)
    pq.write_table(table_of(range(18, 24)), folder / "test-00000-of-00001.parquet")
    (folder.parent / "README.md").write_text("a page")
    return folder.parent


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    def run(source: object, *options: object, out: str = "out") -> Path:
        words = ("--source", source, "--out", tmp_path / out, "--resolution", 16, "--shard-size", 7)
        assert prepare("parquet", monkeypatch, *words, *options) == 0
        return tmp_path / out

    return run


def test_a_part_of_a_hub_folder_comes_with_its_classes(
    hub: Path, prepared: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepared(hub)
    index = open_index(str(out))
    assert (index.num_samples, index.split, index.classes, index.class_counts) == (18, "train", tuple(NAMES), (6, 6, 6))
    found = facts(index)
    assert [entry["label"] for entry in found] == [number % 3 for number in range(18)]
    assert found[10]["source"] == "data/train-00001-of-00002.parquet:0"
    assert "Left out: 1 file of test, 1 .md." in capsys.readouterr().err
    before = {path: path.read_bytes() for path in out.iterdir()}
    prepared(hub)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    other = open_index(str(prepared(hub, "--split", "test", out="other")))
    assert (other.num_samples, other.split) == (6, "test")
    with pytest.raises(UserError, match=r"^--split: got dev, expected one of the parts that .*: test, train;"):
        prepared(hub, "--split", "dev", out="third")


def test_patterns_and_single_files_are_sources(hub: Path, prepared: Prepare) -> None:
    by_pattern = open_index(str(prepared(hub / "data/train-*.parquet")))
    assert by_pattern.num_samples == 18
    one = open_index(str(prepared(hub / "data/test-00000-of-00001.parquet", "--split", "test", out="one")))
    assert one.num_samples == 6
    with pytest.raises(UserError, match=r"^--source: got .*/none-\*\.parquet, which matches no file"):
        prepared(hub / "data/none-*.parquet", out="two")


@pytest.mark.parametrize("form", ["stream", "file"])
def test_what_datasets_saves_to_disk_is_read(form: str, tmp_path: Path, prepared: Prepare) -> None:
    folder = tmp_path / "disk" / "train"
    folder.mkdir(parents=True)
    table = table_of(range(20))
    make = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink, make(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=6):
            writer.write_batch(batch)
    (folder / "cache-1.arrow").write_bytes(b"computed by datasets")
    (folder / "state.json").write_text("{}")
    index = open_index(str(prepared(folder.parent)))
    assert (index.num_samples, index.class_counts) == (20, (7, 7, 6))
    assert [entry["label"] for entry in facts(index)] == [number % 3 for number in range(20)]


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.int16()])
def test_columns_of_bytes_and_of_any_classes(kind: pa.DataType, tmp_path: Path, prepared: Prepare) -> None:
    path = tmp_path / "plain.parquet"
    values = [None if number == 5 else (30 if number % 2 else 4) for number in range(9)]
    if not pa.types.is_integer(kind):
        values = [None if value is None else ("sun" if value == 30 else "moon") for value in values]
    columns = {"jpg": pa.array(IMAGES[:9], pa.large_binary()), "kind": pa.array(values, kind)}
    pq.write_table(pa.table(columns), path)
    assert open_index(str(prepared(path, "--image-column", "jpg", out="bare"))).classes == ()
    index = open_index(str(prepared(path, "--image-column", "jpg", "--label-column", "kind")))
    wanted = ("4", "30") if pa.types.is_integer(kind) else ("moon", "sun")
    assert (index.classes, index.class_counts) == (wanted, (5, 3))
    assert "label" not in facts(index)[5]


def test_labels_can_be_left_out_and_unlabelled_rows_have_none(tmp_path: Path, prepared: Prepare) -> None:
    table = table_of(range(6)).set_column(2, "label", [[0, 1, 2, -1, -1, 0]])
    path = tmp_path / "some.parquet"
    pq.write_table(table.replace_schema_metadata(described(*NAMES)), path)
    index = open_index(str(prepared(path)))
    assert (index.classes, index.class_counts) == (tuple(NAMES), (2, 1, 1))
    assert open_index(str(prepared(path, "--label-column", "none", out="bare"))).classes == ()


@pytest.mark.parametrize("names", [("cat", "cat"), ("cat", "")])
def test_classes_must_have_names_of_their_own(names: tuple[str, ...], tmp_path: Path, prepared: Prepare) -> None:
    (tmp_path / "hub").mkdir()
    pq.write_table(table_of(range(4), names), tmp_path / "hub" / "all.parquet")
    with pytest.raises(
        UserError, match=r"table all\.parquet: got an empty or repeated name among those of the classes"
    ):
        prepared(tmp_path / "hub")
    assert not (tmp_path / "out").exists()
    assert open_index(str(prepared(tmp_path / "hub", "--label-column", "none"))).classes == ()


def test_an_empty_text_is_no_class(tmp_path: Path, prepared: Prepare) -> None:
    (tmp_path / "hub").mkdir()
    given = table_of(range(4)).replace_schema_metadata(None)
    texts = pa.array(["cat", "", "dog", "cat"])
    pq.write_table(given.set_column(2, "label", texts), tmp_path / "hub" / "all.parquet")
    index = open_index(str(prepared(tmp_path / "hub")))
    assert (index.classes, index.class_counts) == (("cat", "dog"), (2, 1))
    assert [entry.get("label") for entry in facts(index)] == [0, None, 1, 0]


def test_broken_images_are_left_out_with_their_rows(tmp_path: Path, prepared: Prepare) -> None:
    path = tmp_path / "some.parquet"
    images = [{"bytes": IMAGES[0]}, {"bytes": b"no image"}, None, {"bytes": None}, {"bytes": b""}, {"bytes": IMAGES[1]}]
    pq.write_table(pa.table({"image": pa.array(images, pa.struct([("bytes", pa.binary())]))}), path)
    out = prepared(path)
    assert open_index(str(out)).num_samples == 2
    listed = json.loads((out / "unreadable.json").read_text())
    assert [entry["source"] for entry in listed] == [f"some.parquet:{row}" for row in range(1, 5)]
    assert "cannot identify image file" in listed[0]["reason"]
    assert {entry["reason"] for entry in listed[1:]} == {"a row without the bytes of an image"}


def test_rows_are_split_by_content(hub: Path, prepared: Prepare) -> None:
    out = prepared(hub, "--split", "0.7")
    parts = {part: open_index(str(out / part)) for part in ("train", "test")}
    assert sum(index.num_samples for index in parts.values()) == 24
    names = {part: {str(entry["source"]) for entry in facts(index)} for part, index in parts.items()}
    assert names["train"].isdisjoint(names["test"])
    # Another order of the same rows splits them in the same way.
    mixed = hub.parent / "mixed.parquet"
    pq.write_table(table_of(list(range(23, -1, -1))), mixed, row_group_size=5)
    out = prepared(mixed, "--split", "0.7", out="mixed")
    rows = {int(str(entry["source"]).partition(":")[2]) for entry in facts(open_index(str(out / "test")))}

    def number_of(name: str) -> int:
        file, _, row = name.partition(":")
        first = 18 if "test" in file else 10 if "00001-of" in file else 0
        return first + int(row)

    assert {23 - row for row in rows} == {number_of(name) for name in names["test"]}


def test_any_rows_are_read_a_few_at_a_time(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "BATCH_ROWS", 3)
    table = open_table(hub, hub / "data/train-00000-of-00002.parquet")
    assert table.groups == (4, 4, 2)
    for rows in ([0], [9], [3, 4], [1, 2, 5, 8], list(range(10))):
        found = list(table.read(["label", "id"], np.array(rows)))
        assert found == [(row, [row % 3, row]) for row in rows]


def test_a_preparation_that_was_killed_goes_on(
    hub: Path, prepared: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets_prep._build as build_module

    straight = prepared(hub, out="straight")
    make, made = build_module._make_shard, []

    def dies(task: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(task.number)
        return make(task)

    monkeypatch.setattr(build_module, "_make_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(hub, out="killed")
    monkeypatch.setattr(build_module, "_make_shard", make)
    killed = prepared(hub, out="killed")
    assert "2 shards finished" in capsys.readouterr().err
    for name in ("images-train-00000.tar", "images-train-00001.tar", "images-train-00002.tar", "index.parquet"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()


def test_changed_rows_are_noticed(hub: Path, prepared: Prepare) -> None:
    prepared(hub)
    path = hub / "data/train-00000-of-00002.parquet"
    size = path.stat().st_size
    data = bytearray(path.read_bytes())
    place = data.find(IMAGES[9][-200:])
    assert place > 0
    data[place + 100] ^= 1
    path.write_bytes(data)
    assert path.stat().st_size == size
    with pytest.raises(UserError, match=r"images made from other content .*train-00000-of-00002\.parquet:9"):
        prepared(hub)
    os.utime(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--image-column", "picture"), r"option --image-column: got picture, which data/train-\S+ does not have once"),
        (
            ("--image-column", "label"),
            r"--image-column: got label, which data/train-\S+ has as int64, expected a column",
        ),
        (("--label-column", "image"), r"option --label-column: got image, which .* has as struct<bytes"),
        (("--label-column", "kind"), "option --label-column: got kind, which .* does not have once among id"),
        (("--crop", "left"), "option --crop: got left"),
        (("--split", "2.5"), r"^--split: got '2\.5'"),
        (("--split", "a/b"), "^--split: got 'a/b'"),
    ],
)
def test_what_the_tables_do_not_have_is_said(
    options: tuple[str, ...], said: str, hub: Path, prepared: Prepare, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        prepared(hub, *options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_what_is_no_table_is_said(hub: Path, prepared: Prepare, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"^--source: got an empty folder, expected a folder with \.parquet"):
        prepared(empty)
    with pytest.raises(UserError, match=r"^--source: got \S+/nowhere, expected a folder"):
        prepared(tmp_path / "nowhere")
    (hub / "README.md").rename(empty / "README.md")
    with pytest.raises(UserError, match=r"^--source: got a folder with README\.md"):
        prepared(empty)
    pq.write_table(table_of([]), empty / "none.parquet")
    with pytest.raises(UserError, match=r"^--source: got 1 table without rows"):
        prepared(empty)
    (empty / "none.parquet").write_bytes(b"PAR1 and something else")
    with pytest.raises(UserError, match=r"^table \S+none\.parquet: got damage, or a file that cannot be read"):
        prepared(empty)
    (empty / "none.parquet").rename(empty / "none.arrow")
    with pytest.raises(UserError, match=r"^table \S+none\.arrow: got damage"):
        prepared(empty)


def test_damage_within_a_table_ends_the_command_and_names_it(hub: Path, prepared: Prepare, tmp_path: Path) -> None:
    path = hub / "data/train-00001-of-00002.parquet"
    column = pq.read_metadata(path).row_group(1).column(1)
    first = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    # The header of a page of images.
    data[first : first + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"^table \S+train-00001-of-00002\.parquet: got damage"):
        prepared(hub)
    assert not (tmp_path / "out/index.parquet").exists()
