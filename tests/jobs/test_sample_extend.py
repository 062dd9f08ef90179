"""Extending a folder of generated images: readers see the old ones, none, or all of the new ones, and no mixture."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import open_index
from drl_dist.jobs.sample import driver as sample_driver
from drl_dist.jobs.sample.driver import sample_run
from drl_dist.jobs.sample.options import SampleOptions
from drl_dist.jobs.sample.task import SampleTasks
from tests.jobs.in_process import OneByOne, run_in_process
from tests.support import write_tiny_checkpoint


class Killed(BaseException):
    """Ends a job in the middle of a write."""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch, sample_driver)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", width=4, num_chain_steps=2)


def sample(checkpoint: Path, out: Path, num_images: int, **changed: Any) -> int:
    fields: dict[str, Any] = {"shard_size": 8, "batch_size": 4, "seed": 5}
    return sample_run(SampleOptions(model=str(checkpoint), out=str(out), num_images=num_images, **fields | changed))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images(folder: Path) -> list[bytes]:
    """The PNGs that the index tells of, each of them whole."""
    found: list[bytes] = []
    for row in open_index(str(folder)).shards:
        with tarfile.open(fileobj=io.BytesIO((folder / row.name).read_bytes())) as tar:
            found += [file.read() for member in tar if (file := tar.extractfile(member)) is not None]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fewer", "more", "made"),
    [(10, 20, [1, 2]), (10, 16, [1]), (8, 20, [1, 2]), (3, 20, [0, 1, 2]), (3, 5, [0]), (9, 10, [1])],
)
def test_what_is_extended_is_what_is_made_at_once(
    checkpoint: Path, tmp_path: Path, fewer: int, more: int, made: list[int]
) -> None:
    assert sample(checkpoint, tmp_path / "out", fewer) == 0
    before = images(tmp_path / "out")
    OneByOne.made.clear()
    assert sample(checkpoint, tmp_path / "out", more) == 0
    assert OneByOne.made == made
    after = images(tmp_path / "out")
    assert after[:fewer] == before
    assert len(after) == more
    assert sample(checkpoint, tmp_path / "once", more) == 0
    # A batch of one image may be rounded otherwise than the same image among others.
    if fewer % 4 != 1:
        assert contents(tmp_path / "out") == contents(tmp_path / "once")


@pytest.mark.slow
def test_a_kill_at_any_write_leaves_the_old_images_or_what_resumes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, remove, left = tmp_path / "out", Folder.write, Folder.remove, 0

    def counted(work: Any) -> Any:
        def cut_short(self: Folder, *arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            work(self, *arguments)

        return cut_short

    assert sample(checkpoint, tmp_path / "ten", 10) == 0
    before = images(tmp_path / "ten")
    assert sample(checkpoint, tmp_path / "once", 20) == 0
    monkeypatch.setattr(Folder, "write", counted(write))
    monkeypatch.setattr(Folder, "remove", counted(remove))
    seen: list[str] = []
    for after in range(1, 100):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "ten", out)
        left = after
        try:
            assert sample(checkpoint, out, 20) == 0
            break
        except Killed:
            left = 0
        if (out / "index.parquet").exists():
            found = images(out)
            seen.append(f"{len(found)} images")
            assert found[:10] == before
            assert len(found) in (10, 20)
            if len(found) == 10:
                # Whoever asks for what is there gets it, and takes nothing away from the extension.
                assert sample(checkpoint, out, 10) == 0
        else:
            seen.append("resumes")
            with pytest.raises(UserError, match="was begun for 20 of these images, expected at most 10"):
                sample(checkpoint, out, 10)
        with pytest.raises(UserError, match=r"got other images \(seed: 5 -> 6\)"):
            sample(checkpoint, out, 20, seed=6)
        left = 0
        assert sample(checkpoint, out, 20) == 0
        assert contents(out) == contents(tmp_path / "once")
        assert not (out / "_progress").exists()
    assert {"10 images", "resumes", "20 images"} == set(seen), seen


@pytest.mark.slow
def test_a_job_in_its_middle_is_extended_too(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Folder.write

    def cut_short(self: Folder, name: str, data: bytes) -> None:
        write(self, name, data)
        if name == "00001.json":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Folder, "write", cut_short)
        sample(checkpoint, tmp_path / "out", 20)
    with pytest.raises(UserError, match=r"was begun for 20 of these images, expected at most 10; use --num-images 20"):
        sample(checkpoint, tmp_path / "out", 10)
    OneByOne.made.clear()
    assert sample(checkpoint, tmp_path / "out", 30) == 0
    assert OneByOne.made == [2, 3]
    assert sample(checkpoint, tmp_path / "once", 30) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "once")


def test_images_that_were_there_keep_their_bytes_whatever_their_batch_rounds(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample(checkpoint, tmp_path, 6) == 0
    before = images(tmp_path)
    make = SampleTasks.make

    def rounded(self: SampleTasks, task: int) -> Iterator[Any]:
        # As on another machine.
        self._noise = type(self._noise)(seed=99)
        return make(self, task)

    monkeypatch.setattr(SampleTasks, "make", rounded)
    assert sample(checkpoint, tmp_path, 8) == 0
    after = images(tmp_path)
    assert after[:6] == before
    assert len(set(after)) == 8
    # Complete, and told of by its manifest.
    assert sample(checkpoint, tmp_path, 9) == 0
    assert images(tmp_path)[:8] == after


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("grid.png", "got grid.png of something else"),
        ("tiny-generated-00000.tar", "got tiny-generated-00000.tar of something else"),
        ("request.json", "got request.json of something else"),
        ("_progress/request.json", "got a damaged request.json"),
        ("_progress/00000.json", "got _progress/00000.json of something else"),
        ("_progress/progression.png", "got _progress/progression.png of something else"),
    ],
)
def test_what_something_else_left_is_not_written_over(checkpoint: Path, tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(UserError, match=told):
        sample(checkpoint, tmp_path, 4)
    assert contents(tmp_path) == {name: b"?"}


def test_a_file_in_the_place_of_a_record_is_no_record(checkpoint: Path, tmp_path: Path) -> None:
    assert sample(checkpoint, tmp_path, 4) == 0
    (tmp_path / "_progress").mkdir()
    (tmp_path / "_progress" / "00000.json").write_bytes(b"mine")
    before = contents(tmp_path)
    # Complete, so that there is nothing to write.
    assert sample(checkpoint, tmp_path, 4) == 0
    with pytest.raises(UserError, match=r"got _progress/00000.json of something else"):
        sample(checkpoint, tmp_path, 20)
    assert contents(tmp_path) == before
    for text in (b"mine", b"{}"):
        (tmp_path / "_progress" / "request.json").write_bytes(text)
        assert sample(checkpoint, tmp_path, 4) == 0
        assert (tmp_path / "_progress" / "request.json").read_bytes() == text


def test_files_of_others_stay(checkpoint: Path, tmp_path: Path) -> None:
    assert sample(checkpoint, tmp_path, 4) == 0
    (tmp_path / "_progress").mkdir()
    for name in ("notes.txt", ".notes.part", "_progress/notes.txt"):
        (tmp_path / name).write_text("mine")
    assert sample(checkpoint, tmp_path, 6) == 0
    assert all((tmp_path / name).read_text() == "mine" for name in ("notes.txt", ".notes.part", "_progress/notes.txt"))


def test_a_manifest_that_does_not_fit_is_told(checkpoint: Path, tmp_path: Path) -> None:
    assert sample(checkpoint, tmp_path, 9) == 0
    (tmp_path / "manifest.parquet").unlink()
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"manifest .*/manifest.parquet: got FileNotFoundError"):
        sample(checkpoint, tmp_path, 12)
    assert contents(tmp_path) == before
