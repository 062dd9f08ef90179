"""The index: what is written is read, and nothing impossible is believed."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drl_dist.common.errors import UserError
from drl_dist.data import index as index_module
from drl_dist.data.index import INDEX_NAME, ShardIndex, open_index, write_index
from drl_dist.data.shards import ShardRow
from tests.data.sets import rewritten, write_set


def test_is_read_as_written(tmp_path: Path) -> None:
    written = write_set(str(tmp_path), channels=3)
    written = dataclasses.replace(written, made_by={"source": "abc", "shard_size": 16})
    write_index(written)
    found = open_index(str(tmp_path))
    assert found.fingerprint == written.fingerprint
    assert (found.name, found.split, found.resolution, found.channels, found.num_samples, found.made_by) == (
        "toy",
        "train",
        8,
        3,
        53,
        {"source": "abc", "shard_size": 16},
    )
    for one, other in zip(found.shards, written.shards, strict=True):
        assert (one.name, one.size, one.sha256) == (other.name, other.size, other.sha256)
        assert np.array_equal(one.offsets, other.offsets) and one.offsets.dtype == np.int64


def test_fingerprint_tells_any_change_but_the_place(tmp_path: Path) -> None:
    index = write_set(str(tmp_path))
    row = index.shards[0]
    others = [
        dataclasses.replace(index, name="b"),
        dataclasses.replace(index, split="b"),
        dataclasses.replace(index, channels=3),
        dataclasses.replace(index, resolution=9),
        dataclasses.replace(index, made_by={"a": 1}),
        dataclasses.replace(index, shards=index.shards[:-1]),
    ]
    others += [
        dataclasses.replace(index, shards=(dataclasses.replace(row, **change), *index.shards[1:]))
        for change in ({"name": "a.tar"}, {"size": 1}, {"sha256": "0" * 64}, {"offsets": row.offsets + 512})
    ]
    prints = {other.fingerprint for other in others}
    assert len(prints) == len(others) and index.fingerprint not in prints
    assert dataclasses.replace(index, url="gs://elsewhere").fingerprint == index.fingerprint


def test_no_shards_is_said_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"empty or missing folder.*datasets_prep"):
        open_index(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 file but no index.parquet"):
        open_index(str(tmp_path))


def refusal(url: str) -> str:
    with pytest.raises(UserError) as caught:
        open_index(url)
    return str(caught.value)


def test_a_folder_of_parts_is_told_as_one(tmp_path: Path) -> None:
    for part in ("a", "test", "train"):
        write_set(f"{tmp_path}/{part}")
    (tmp_path / ".cache").mkdir()
    assert refusal(str(tmp_path)) == (
        f"data {tmp_path}: got a folder that holds train, a and test, each with image shards of its own, expected "
        f"image shards with their index.parquet; give {tmp_path}/train."
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a.JPG", "b.png"],
            r"got 2 pictures but no shards, .* datasets_prep\.folder --source '?{place}'? --out FOLDER",
        ),
        (["cats/a.jpg", "dogs/b.webp", "notes.txt"], "got 2 pictures but no shards"),
        ([f"{name}/a.jpg" for name in range(20)], "got at least 16 pictures but no shards"),
        (["a.parquet"], "got 1 Parquet table but no index.parquet, .* datasets_prep.parquet --source"),
        (["old/a.txt"], "got no index.parquet, and the folder old, .*; correct the URL"),
        (
            ["c", *(f"{name}/a.txt" for name in "abdef")],
            "got 1 file but no index.parquet, and the folders a, b, d and 2",
        ),
    ],
)
def test_a_folder_without_shards_is_told_by_what_it_holds(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert re.search(message.format(place=re.escape(str(tmp_path))), refusal(str(tmp_path)))


def test_another_resolution_is_refused_with_both_figures(tmp_path: Path) -> None:
    index = write_set(str(tmp_path))
    index.check_model(resolution=8, channels=1)
    with pytest.raises(UserError, match=r"got 8x8 pixels with 1 channel, expected 32x32 pixels with 3 channels"):
        index.check_model(resolution=32, channels=3)


def test_missing_and_cut_shards_are_named(tmp_path: Path) -> None:
    index = write_set(str(tmp_path))
    cut = tmp_path / index.shards[1].name
    cut.write_bytes(cut.read_bytes()[:-512])
    with pytest.raises(UserError, match=rf"{cut.name}: got {index.shards[1].size - 512} bytes, expected"):
        open_index(str(tmp_path))
    cut.unlink()
    with pytest.raises(UserError, match=rf"{cut.name}: got no such file"):
        open_index(str(tmp_path))
    assert open_index(str(tmp_path), check_shards=False).num_samples == index.num_samples


def _with_row(**change: Any) -> Callable[[ShardIndex], ShardIndex]:
    return lambda index: dataclasses.replace(
        index, shards=(dataclasses.replace(index.shards[0], **change), *index.shards[1:])
    )


def _offsets(*values: int) -> Callable[[ShardIndex], ShardIndex]:
    return _with_row(offsets=np.array(values, dtype=np.int64))


BAD: dict[str, tuple[Callable[[ShardIndex], ShardIndex], str]] = {
    "path in the name": (_with_row(name="../../etc/passwd.tar"), "plain file name"),
    "hidden name": (_with_row(name=".a.tar"), "plain file name"),
    "absolute name": (_with_row(name="/a.tar"), "plain file name"),
    "backslash": (_with_row(name="..\\a.tar"), "plain file name"),
    "no tar": (_with_row(name="a.pkl"), "plain file name"),
    "two of one name": (lambda index: dataclasses.replace(index, shards=(index.shards[0],) * 2), "distinct names"),
    "checksum": (_with_row(sha256="../" + "0" * 61), "64 hexadecimal"),
    "negative size": (_with_row(size=-1), "at most"),
    "huge size": (_with_row(size=2**62), "at most"),
    "no samples": (_offsets(), "one offset a sample"),
    "offsets that fall": (_offsets(0, 4096, 2048), "rise from 0"),
    "offsets not from 0": (_offsets(512, 2048), "rise from 0"),
    "offsets between blocks": (_offsets(0, 2049), "rise from 0"),
    "offsets past the end": (_offsets(0, 2**40), "rise from 0"),
    "no shards": (lambda index: dataclasses.replace(index, shards=()), "1 to"),
    "channels": (lambda index: dataclasses.replace(index, channels=4), "1 or 3 channels"),
    "resolution": (lambda index: dataclasses.replace(index, resolution=10**6), "pixels square"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_content_is_refused(case: str, tmp_path: Path) -> None:
    change, message = BAD[case]
    index = change(write_set(str(tmp_path)))
    write_index(dataclasses.replace(index, shards=tuple(sorted(index.shards, key=lambda row: row.name))))
    with pytest.raises(UserError, match=message):
        open_index(str(tmp_path), check_shards=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata, columns: metadata.update(version=2), "version 2"),
        (lambda metadata, columns: metadata.update(format="else"), "format 'else'"),
        (lambda metadata, columns: metadata.update(fingerprint="0" * 64), "fingerprint"),
        (lambda metadata, columns: metadata.update(num_samples=1), "fingerprint or count"),
        (lambda metadata, columns: metadata.update(made_by=None), "TypeError"),
        (lambda metadata, columns: metadata.pop("split"), "KeyError"),
        (lambda metadata, columns: columns["num_samples"].__setitem__(0, 3), "3 samples but 16 offsets"),
        (lambda metadata, columns: columns["sha256"].__setitem__(0, "0" * 64), "fingerprint"),
        (lambda metadata, columns: columns["offsets"].__setitem__(0, None), "one offset a sample|TypeError|offsets"),
    ],
)
def test_meddling_is_noticed(change: Any, message: str, tmp_path: Path) -> None:
    write_set(str(tmp_path))
    rewritten(tmp_path / INDEX_NAME, change)
    with pytest.raises(UserError, match=message):
        open_index(str(tmp_path))


def test_other_files_of_that_name_are_refused(tmp_path: Path) -> None:
    other = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), other)
    for content in (b"", b"hello", b"PAR1" + b"\xff" * 60 + b"PAR1", other.getvalue()):
        (tmp_path / INDEX_NAME).write_bytes(content)
        with pytest.raises(UserError, match=r"a Parquet file in format drl_dist.shards"):
            open_index(str(tmp_path))


@pytest.mark.parametrize("case", ["values", "text", "rows"])
def test_an_index_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "MAX_UNPACKED_BYTES", 2**20)
    monkeypatch.setattr(index_module, "MAX_SHARDS", 100)
    columns = {
        "values": {"offsets": [[0] * 200_000]},
        "text": {"name": ["a" * 2**21]},
        "rows": {"num_samples": [1] * 101},
    }[case]
    pq.write_table(pa.table(columns), tmp_path / INDEX_NAME, compression="zstd")
    assert (tmp_path / INDEX_NAME).stat().st_size < 2**14
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    expected = "101 rows, expected at most 100 shards" if case == "rows" else "bytes once unpacked, expected at most"
    with pytest.raises(UserError, match=expected):
        open_index(str(tmp_path))


def test_rows_know_their_samples() -> None:
    row = ShardRow("a.tar", 10240, "0" * 64, np.array([0, 1024], dtype=np.int64))
    assert (row.num_samples, row.span(0), row.span(1)) == (2, (0, 1024), (1024, 10240))
