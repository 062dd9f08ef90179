"""Clean-up removes what a command wrote, by name; what a user keeps in the same folder stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from datasets_prep import folder as prepare_folder
from drl_dist.checkpoints.retention import remove_orphaned
from drl_dist.checkpoints.storage import FILES, StoredCheckpoint, checkpoint_name, remove_checkpoint, stored_checkpoints
from drl_dist.common.errors import UserError
from drl_dist.data.cache import ShardCache
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import open_index
from tests.data.sets import write_set
from tests.helpers.notes import NOTES, assert_notes, checkpoint, keep_notes


def prepare(source: Path, out: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    words = ["--source", str(source), "--resolution", "8", "--workers", "1", "--shard-size", "2", "--out", out, *more]
    monkeypatch.setattr(sys, "argv", ["folder", *words])
    return prepare_folder.main()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 0, 10)).save(folder / f"{number}.png")
    return folder


def test_preparing_beside_a_folder_of_the_shorter_name(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_notes(tmp_path / "photos")
    for _ in range(2):
        assert prepare(pictures, f"{tmp_path}/photos::v2", monkeypatch) == 0
    assert_notes(tmp_path / "photos")
    assert len(list((tmp_path / "photos").iterdir())) == len(NOTES)
    assert open_index(f"{tmp_path}/photos::v2").num_samples == 3


def test_preparing_leaves_notes_that_came_later(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as killing:
        killing.setattr("datasets_prep._build.write_index", _killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(pictures, str(out), monkeypatch)
    keep_notes(out)
    keep_notes(out / "_progress")
    (out / ".images-train-00000.tar.0123abcd.part").write_text("half")
    (out / ".source.parquet.0123abcd.part").write_text("half")
    assert prepare(pictures, str(out), monkeypatch) == 0
    assert_notes(out)
    assert {path.name for path in (out / "_progress").iterdir()} == set(NOTES)
    made = {"images-train-00000.tar", "images-train-00001.tar", "index.parquet", "source.parquet", "_progress"}
    assert {path.name for path in out.iterdir()} == made | set(NOTES)
    # A second start has nothing to make, and nothing of its own to remove.
    (out / "_progress" / "00000.json").write_text("mine")
    assert prepare(pictures, str(out), monkeypatch) == 0
    assert (out / "_progress" / "00000.json").read_text() == "mine"
    assert_notes(out / "_progress")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("images-train-00001.tar", "mine", "got images-train-00001.tar of something else"),
        ("unreadable.json", "mine", "got unreadable.json of something else"),
        ("source.parquet", "mine", "got source.parquet of something else"),
        ("request.json", "{}", "got request.json of something else"),
        ("_progress/00001.json", '{"row": null}', "got _progress/00001.json of something else"),
        ("_progress/request.json", "{}", "got _progress/request.json of something else"),
        ("IMG_0001.jpg", "mine", r"out: got IMG_0001\.jpg of something else, expected an empty folder, or "),
        ("album/1.png", "mine", "got album of something else"),
        ("_progress/parameters.json", "mine", "got a damaged parameters.json"),
        ("_progress/parameters.json", "[]", "got a damaged parameters.json"),
        ("_progress/parameters.json", "{}", "got data prepared with other options"),
    ],
)
def test_preparing_takes_no_folder_of_others(
    name: str, text: str, message: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(pictures, f"{tmp_path}/out", monkeypatch)
    assert [one.relative_to(tmp_path / "out") for one in (tmp_path / "out").rglob("*.*")] == [Path(name)]
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["mine", "[]", "{}", '{"row": {"name": "a"}, "unreadable": []}', '{"row": null}'])
def test_something_else_than_a_record_is_refused(
    text: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("datasets_prep._build.write_index", _killed)
        prepare(pictures, f"{tmp_path}/out", monkeypatch)
    record = tmp_path / "out" / "_progress" / "00001.json"
    record.write_text(text)
    with pytest.raises(UserError, match=r"record .*/_progress/00001.json: got something else, .* remove this file"):
        prepare(pictures, f"{tmp_path}/out", monkeypatch)
    assert record.read_text() == text
    record.unlink()
    assert prepare(pictures, f"{tmp_path}/out", monkeypatch) == 0


def test_parameters_of_others_beside_finished_data_stay(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in (None, "mine", "{}"):
        assert prepare(pictures, f"{tmp_path}/out", monkeypatch) == 0
        if text is not None:
            assert (tmp_path / "out" / "_progress" / "parameters.json").read_text() == text
        (tmp_path / "out" / "_progress").mkdir(exist_ok=True)
        (tmp_path / "out" / "_progress" / "parameters.json").write_text({None: "mine", "mine": "{}"}.get(text, ""))


def test_notes_are_not_taken_for_records(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("datasets_prep._build.write_index", _killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(pictures, str(out), monkeypatch)
    keep_notes(out / "_progress")
    assert (out / "_progress" / "00001.json").exists()
    assert prepare(pictures, str(out), monkeypatch) == 0
    assert {path.name for path in (out / "_progress").iterdir()} == set(NOTES)


def _killed(_: object) -> None:
    raise KeyboardInterrupt


def test_hidden_files_are_no_reason_to_refuse_a_folder(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "_progress").mkdir(parents=True)
    hidden = [out / ".DS_Store", out / "_progress" / ".parameters.json.0123abcd.part"]
    for path in hidden:
        path.write_text("hidden")
    assert prepare(pictures, str(out), monkeypatch) == 0
    assert open_index(str(out)).num_samples == 3 and hidden[0].read_text() == "hidden"


@pytest.mark.parametrize("split", ["train", "0.5"])
def test_the_source_is_no_place_for_shards(
    split: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "album").mkdir()
    link = tmp_path / "link"
    link.symlink_to(pictures)
    for out in (pictures, link):
        with pytest.raises(UserError, match=rf"--out: got {out}, the folder of --source, expected a folder of its own"):
            prepare(pictures, str(out), monkeypatch, "--split", split)
    with pytest.raises(UserError, match=r"got album, notes\.txt of something else"):
        keep = tmp_path / "keep"
        (keep / "album").mkdir(parents=True)
        (keep / "notes.txt").write_text("mine")
        prepare(pictures, str(keep), monkeypatch, "--split", split)
    assert len(list(pictures.iterdir())) == 4 and len(list(keep.iterdir())) == 2


def test_parts_of_a_split_resume_beside_what_came_later(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        assert prepare(pictures, str(out), monkeypatch, "--split", "0.5") == 0
        (out / "notes.txt").write_text("mine")


def test_records_leave_no_folder_where_nothing_else_lies(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(pictures, f"{tmp_path}/out", monkeypatch) == 0
    assert not (tmp_path / "out" / "_progress").exists()


@pytest.mark.integration
def test_preparing_in_a_bucket(
    pictures: Path, tmp_path: Path, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(f"{gcs_bucket}/photos").write("notes.txt", b"mine")
    for place in ("photos", "photos/album"):
        Folder(f"{gcs_bucket}/{place}").write("notes.txt", b"mine")
        with pytest.raises(UserError, match=r"got (album, )?notes\.txt of something else"):
            prepare(pictures, f"{gcs_bucket}/{place}", monkeypatch)
    with pytest.raises(UserError, match="got photos of something else"):
        prepare(pictures, gcs_bucket, monkeypatch)
    assert prepare(pictures, f"{gcs_bucket}/photos::v2", monkeypatch) == 0
    Folder(f"{gcs_bucket}/photos::v2/_progress").write("notes.txt", b"mine")
    assert prepare(pictures, f"{gcs_bucket}/photos::v2", monkeypatch) == 0
    assert Folder(f"{gcs_bucket}/photos").sizes() == {"notes.txt": 4}
    assert Folder(f"{gcs_bucket}/photos::v2/_progress").sizes() == {"notes.txt": 4}
    assert open_index(f"{gcs_bucket}/photos::v2").num_samples == 3


def test_a_users_folders_beside_checkpoints_stay(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (10, 20, 30):
        checkpoint(run / checkpoint_name(step))
    theirs = ["checkpoint_mine", "checkpoint_000010-backup", "checkpoint_0000000010", "checkpoint_٠٠٠٠٠٠٠١٠", "old"]
    for name in theirs:
        checkpoint(run / name)
    keep_notes(run / checkpoint_name(10))
    keep_notes(run / checkpoint_name(5))
    checkpoint(tmp_path / "elsewhere")
    (run / checkpoint_name(7)).symlink_to(tmp_path / "elsewhere")
    newest = StoredCheckpoint(f"{run}/{checkpoint_name(30)}", 30)
    removed = remove_orphaned(str(run), 1, newest)
    assert [one.step for one in removed] == [20, 10]
    assert_notes(run / checkpoint_name(10))
    assert_notes(run / checkpoint_name(5))
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == sorted(FILES)
    assert not (run / checkpoint_name(20)).exists()
    for name in theirs:
        assert sorted(path.name for path in (run / name).iterdir()) == sorted(FILES)
    assert remove_orphaned(str(run), 1, newest) == []
    assert [one.step for one in stored_checkpoints(str(run))] == [30, 10, 5]


def test_a_checkpoint_behind_a_link_stays(tmp_path: Path) -> None:
    checkpoint(tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    remove_checkpoint(f"{tmp_path}/link")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(FILES)


@pytest.mark.integration
def test_a_cache_in_a_users_folder_counts_and_removes_its_own_only(gcs_bucket: str, tmp_path: Path) -> None:
    index = write_set(f"{gcs_bucket}/toy", (8,) * 4)
    size = index.shards[0].size
    theirs = {f"toy-train-{number:05d}.tar" for number in range(3)} | {"a.part", f"{'0' * 64}.tar", "notes.tar"}
    for name in theirs:
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "room.lock").write_text("mine")
    (tmp_path / f"{'1' * 64}.lock").touch()
    (tmp_path / f"{'1' * 64}.tar").symlink_to(tmp_path / "notes.tar")
    cache = ShardCache(index.url, cache_dir=str(tmp_path), max_bytes=2 * size)
    for row in index.shards:
        cache.open(row).close()
    assert {name for name in theirs if (tmp_path / name).stat().st_size == size} == theirs
    assert (tmp_path / "room.lock").read_text() == "mine"
    assert (tmp_path / f"{'1' * 64}.tar").is_symlink()
    own = {f"{row.sha256}.tar" for row in index.shards}
    assert len(own & {path.name for path in tmp_path.iterdir()}) == 2


@pytest.mark.integration
def test_a_cache_that_is_the_data_folder_loses_nothing(gcs_bucket: str, tmp_path: Path) -> None:
    here = write_set(str(tmp_path), (8,) * 4)
    there = write_set(f"{gcs_bucket}/toy", (4,) * 4)
    cache = ShardCache(there.url, cache_dir=str(tmp_path), max_bytes=there.shards[0].size)
    for row in there.shards:
        cache.open(row).close()
    assert open_index(str(tmp_path)).fingerprint == here.fingerprint
