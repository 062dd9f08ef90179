"""A run's metrics and pictures as files in its folder: resumption, damage, outages, TensorBoard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH
from drl_dist.data.filesystem import Folder
from drl_dist.data.shards import encode_png
from drl_dist.tracking.files import events, run_files
from drl_dist.tracking.files.run_files import RunFiles, refuse_other_files
from drl_dist.tracking.files.table import EARLIER, SCHEMA, MetricsTable, histories, read_table


def steps_of(folder: Path) -> list[int]:
    return read_table(str(folder), ["loss"])["step"].to_pylist()


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "metrics").iterdir())


def log(table: MetricsTable, first: int, last: int, loss: float = 0.0) -> None:
    for step in range(first, last + 1):
        table.log(step, {"loss": loss + step, "grad_norm": 1.0})


def test_a_segment_ends_at_a_checkpoint_and_parquet_readers_read_them_all(tmp_path: Path) -> None:
    table = MetricsTable(str(tmp_path), 0)
    log(table, 1, 5)
    table.write(is_sealed=True)
    log(table, 6, 7)
    table.write(is_sealed=False)
    first = (tmp_path / "metrics" / "steps_000000001.parquet").stat().st_mtime_ns
    log(table, 8, 9)
    table.write(is_sealed=False)
    assert segments(tmp_path) == ["steps_000000001.parquet", "steps_000000006.parquet"]
    assert (tmp_path / "metrics" / "steps_000000001.parquet").stat().st_mtime_ns == first
    assert steps_of(tmp_path) == list(range(1, 10))
    whole = pq.read_table(tmp_path / "metrics")
    assert whole.num_rows == 18 and whole.schema.equals(SCHEMA, check_metadata=False)
    assert histories(read_table(str(tmp_path), ["grad_norm"])).keys() == {"grad_norm"}


def test_a_resumed_run_has_each_step_once_and_no_gap(tmp_path: Path) -> None:
    table = MetricsTable(str(tmp_path), 0)
    log(table, 1, 4)
    table.write(is_sealed=True)
    log(table, 5, 9)
    table.write(is_sealed=True)
    log(table, 10, 11)
    table.write(is_sealed=False)
    # Killed after step 11; the newest checkpoint is that of step 6, in the middle of a segment.
    again = MetricsTable(str(tmp_path), 6)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    log(again, 7, 8, loss=100.0)
    again.write(is_sealed=False)
    found = histories(read_table(str(tmp_path)))["loss"].values
    assert found == {**{step: step for step in range(1, 7)}, 7: 107.0, 8: 108.0}
    assert steps_of(tmp_path) == list(range(1, 9))
    # Nothing was checkpointed: from scratch.
    MetricsTable(str(tmp_path), 0)
    assert segments(tmp_path) == []


def test_a_number_that_comes_after_a_segment_of_its_step_is_kept(tmp_path: Path) -> None:
    table = MetricsTable(str(tmp_path), 0)
    for step in (1, 2):
        log(table, step, step)
        table.write(is_sealed=True)
        table.log(step, {"late": 1.0})
    table.write(is_sealed=True)
    assert histories(read_table(str(tmp_path)))["late"].values == {1: 1.0, 2: 1.0}
    assert steps_of(tmp_path) == [1, 2]


def test_the_ends_alone_are_read_of_long_runs(tmp_path: Path) -> None:
    table = MetricsTable(str(tmp_path), 0)
    for first in range(1, 11, 2):
        log(table, first, first + 1)
        table.write(is_sealed=True)
    assert read_table(str(tmp_path), ["loss"], ends_only=True)["step"].to_pylist() == [1, 2, 7, 8, 9, 10]


def test_lines_of_an_earlier_version_are_taken_over(tmp_path: Path) -> None:
    (tmp_path / EARLIER).write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    assert histories(read_table(str(tmp_path)))["loss"].values == {1: 2.5, 2: None}
    table = MetricsTable(str(tmp_path), 1)
    log(table, 2, 2)
    table.write(is_sealed=False)
    found = histories(read_table(str(tmp_path)))["loss"]
    assert found.values == {1: 2.5, 2: 2.0} and found.times.keys() == {2}
    assert not (tmp_path / EARLIER).exists()
    (tmp_path / EARLIER).write_text('{"step": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: got line 2 without a step"):
        MetricsTable(str(tmp_path), 1)


def test_damage_is_named_and_foreign_files_stay(tmp_path: Path) -> None:
    table = MetricsTable(str(tmp_path), 0)
    log(table, 1, 2)
    table.write(is_sealed=True)
    for name in ("notes.parquet", "steps_1.parquet", ".steps_000000001.parquet.0123abcd.part"):
        (tmp_path / "metrics" / name).write_bytes(b"mine")
    MetricsTable(str(tmp_path), 0)
    assert segments(tmp_path) == ["notes.parquet", "steps_1.parquet"]
    (tmp_path / "metrics" / "steps_000000001.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match=r"metrics .*steps_000000001\.parquet: got .*, expected a Parquet file of this"):
        MetricsTable(str(tmp_path), 2)


def test_numbers_that_are_not_finite_are_gaps_and_curves_are_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFiles(str(tmp_path), 0) as files:
        files.log_metrics(1, {"loss": float("nan"), "grad_norm": 2.0})
        monkeypatch.setattr(run_files, "find_spec", lambda name: None)
        files.draw_curves(5)
        assert not (tmp_path / "curves.png").exists()
        monkeypatch.undo()
        files.draw_curves(5)
        with Image.open(tmp_path / "curves.png") as picture:
            assert picture.info["Description"] == f"curves of {tmp_path.name}"
            assert picture.width >= MIN_WIDTH
            assert picture.info["Title"] == (
                f"curves of run {tmp_path.name}, up to about step 1, means over ranges of steps, with medians, seed 5"
            )
    found = histories(read_table(str(tmp_path)))
    assert found["loss"].values == {1: None} and found["grad_norm"].values == {1: 2.0}


def test_an_outage_of_the_storage_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_files, "WRITE_SECONDS", 0.02)
    write, is_away, refused = Folder.write, [True], []

    def through(self: Folder, name: str, data: bytes) -> None:
        if is_away[0]:
            refused.append(name)
            raise UserError("storage", got="nothing", expected="an answer", remedy="wait")
        write(self, name, data)

    with RunFiles(str(tmp_path), 0) as files:
        monkeypatch.setattr(Folder, "write", through)
        files.log_image("samples", 1, encode_png(np.full((3, 8, 8), 7, np.uint8)))
        files.log_metrics(1, {"loss": 1.0})
        with pytest.raises(UserError, match="storage: got nothing"):
            files.write(is_sealed=True)
        while len(refused) < 4:
            pass
        files.draw_curves(5)
        assert not list(tmp_path.rglob("*.p*"))
        is_away[0] = False
        files.write(is_sealed=True)
        files.log_metrics(2, {"loss": 2.0})
    told = capsys.readouterr().err
    assert told.count("metrics and pictures are kept for later: storage") == 1 and "could not be drawn" in told
    assert steps_of(tmp_path) == [1, 2]
    for place in ("samples.png", "pictures/samples/step_00000001.png"):
        with Image.open(tmp_path / place) as picture:
            assert np.asarray(picture).tolist() == np.full((8, 8, 3), 7).tolist()


@pytest.mark.parametrize("is_remote", [False, True])
def test_tensorboard_sees_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_remote: bool) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if is_remote:
        monkeypatch.setattr(events.Folder, "local", None)
        # `Folder.write` itself then goes through the file system's interface.
        (tmp_path / "tensorboard").mkdir()
    with RunFiles(str(tmp_path), 0, has_files=False, has_events=True) as files:
        for step in range(1, 5):
            files.log_metrics(step, {"loss": float(step)})
            files.write(is_sealed=step == 2)
        files.log_image("samples", 2, encode_png(np.zeros((3, 8, 8), np.uint8)))
    with RunFiles(str(tmp_path), 2, has_files=False, has_events=True) as files:
        files.log_metrics(3, {"loss": 30.0})
    # As the upload of the last checkpoint does, which may begin when training has ended.
    files.write(is_sealed=True)
    assert not (tmp_path / "metrics").exists()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == (3 if is_remote else 2)


def test_tensorboard_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    events.check_tensorboard()
    monkeypatch.setattr(events, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"option --tracking\.tensorboard: got no package tensorboard here"):
        events.check_tensorboard()


def test_a_folder_with_files_of_something_else_is_refused(tmp_path: Path) -> None:
    refuse_other_files(str(tmp_path), "experiment.json")
    (tmp_path / "samples.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"got samples\.png of something else, without experiment\.json"):
        refuse_other_files(str(tmp_path), "experiment.json")
    (tmp_path / "experiment.json").write_text("{}")
    refuse_other_files(str(tmp_path), "experiment.json")
