"""``status``, ``list``, ``compare`` and ``delete`` of runs whose metrics are files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drl_dist.checkpoints.rollbacks import Rollback, add_rollback
from drl_dist.checkpoints.run_config import write_run_config
from drl_dist.checkpoints.run_record import write_record
from drl_dist.checkpoints.run_status import RunStatus, State, write_status
from drl_dist.checkpoints.step_costs import STEP_COSTS
from drl_dist.common.durations import duration
from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH
from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.console import delete as deletion
from drl_dist.console.command import run
from drl_dist.data.filesystem import Folder
from drl_dist.data.shards import encode_png
from drl_dist.jobs.sweep.record import BAD_SCORE, CURVE, OUTCOME, Outcome, Status, SweepFolder, write
from drl_dist.tracking.files import table as metrics_table
from drl_dist.tracking.files.run_files import RunFiles
from tests.helpers import checkpoints
from tests.sweeps.makers import curve, plan

NUM_STEPS = 1500


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make(
    storage: Path,
    name: str,
    *,
    steps: int = 60,
    state: State = "running",
    ago: float = 0.0,
    move: float = 0.4,
    learning_rate: float = 1e-3,
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> Path:
    """The folder of a run with metrics, pictures and checkpoints of a few numbers."""
    folder = storage / name
    experiment = preset("digits")
    experiment = dataclasses.replace(
        experiment,
        optim=dataclasses.replace(experiment.optim, learning_rate=learning_rate),
        train=dataclasses.replace(experiment.train, num_steps=NUM_STEPS),
    )
    write_record(str(folder), experiment, "f" * 64)
    write_run_config(RunConfig(experiment=experiment, storage=str(storage), run_name=name), without_ray=False)
    write_status(str(folder), RunStatus(state=state, since=time.time() - ago - 200, starts=2, worker_starts=3))
    if steps:
        now = time.time
        with pytest.MonkeyPatch.context() as patch, RunFiles(str(folder), 0) as files:
            for step in range(1, steps + 1):
                # One step a second, the last one `ago` seconds ago.
                moment = now() - ago - (steps - step)
                patch.setattr(metrics_table.time, "time", lambda moment=moment: moment)
                files.log_metrics(
                    step,
                    {
                        "loss": 1 / step,
                        "grad_norm": 1.0,
                        "displacement/level_0": move,
                        "images_per_second": 32.0,
                        "step_seconds": 1.0,
                    },
                )
            patch.undo()
            files.log_image("samples", steps, encode_png(np.zeros((3, 8, 8), np.uint8)))
        checkpoints.add(folder, 50)
    return folder


def test_status_says_where_a_run_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path, "a")
    add_rollback(str(folder), Rollback(diverged_at=40, back_to=30, reason="chains moved"))
    os.utime(folder / "checkpoint_000000050/checksums.json", (time.time() - 600,) * 2)
    assert run(["status", f"{folder}/"]) == 0
    lines = re.sub(r"sign \d s", "sign 0 s", capsys.readouterr().out).splitlines()
    assert lines == [
        "run a (digits): running, for 3 min (2 starts, 1 restart of its workers, 1 roll-back)",
        f"step 60 of {NUM_STEPS} (4.0%), 32.0 images/s, 24 min left, last sign 0 s ago",
        f"newest checkpoint: step 50, 10 min old, {folder}/checkpoint_000000050",
        "went back from step 40 to step 30: chains moved",
        "health: healthy",
    ]


def test_the_time_left_follows_the_last_minute_as_the_log_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path, "slow")
    with RunFiles(str(folder), 60) as files:
        # Most logged steps are quick, but the machine has become busy.
        files.log_metrics(61, {"loss": 1.0, "images_per_second": 32.0, "step_seconds": 1.0, "recent_step_seconds": 4.0})
    assert run(["status", str(folder)]) == 0
    said = f"step 61 of {NUM_STEPS} (4.1%), 8.0 images/s, {duration((NUM_STEPS - 61) * 4)} left"
    assert f"\n{said}, last sign " in capsys.readouterr().out


def test_status_of_runs_that_are_ill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = make(tmp_path, "silent", ago=1000)
    os.utime(silent / "checkpoint_000000050/checksums.json", (time.time() - 1010,) * 2)
    assert run(["status", str(silent)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("run silent (digits): stale") and "health: stale: no step for 10" in said
    assert " left" not in said and ", last sign 17 min ago\n" in said
    assert run(["status", str(make(tmp_path, "far", move=3.0))]) == 1
    assert "health: diverging: chains move by 3 per pixel" in capsys.readouterr().out
    assert run(["status", str(make(tmp_path, "done", state="finished", ago=1000))]) == 0
    said = capsys.readouterr().out
    assert "run done (digits): finished 20 min ago" in said and "last sign" not in said
    assert run(["status", str(make(tmp_path, "broken", state="failed"))]) == 1
    assert run(["status", str(make(tmp_path, "new", steps=0))]) == 0
    said = capsys.readouterr().out
    assert f"no step of {NUM_STEPS} is made yet\nno checkpoint yet\n" in said


def test_a_list_shows_runs_alone_and_damage_hides_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    make(tmp_path, "b", state="finished")
    (make(tmp_path, "a") / "experiment.json").write_text("{}")
    (tmp_path / "photographs").mkdir()
    assert run(["list", str(tmp_path)]) == 0
    head, damaged, good = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "step", "of", "preset", "last", "sign", "health"]
    assert damaged.startswith("a    damaged") and "no experiment in it" in damaged
    assert good.split()[:5] == ["b", "finished", "60", str(NUM_STEPS), "digits"] and good.endswith("healthy")


def test_a_place_without_runs_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    folder = make(tmp_path, "a")
    for place, message in (
        (tmp_path / "nowhere", "nowhere: got no such folder, expected the folder that runs are in; correct"),
        (folder, "got the folder of a run, expected the folder that runs are in; leave out the run's name"),
    ):
        with pytest.raises(UserError, match=message):
            run(["list", str(place)])


@pytest.mark.integration
def test_runs_in_a_bucket_are_listed(gcs_bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"runs: got nothing there, expected the folder that runs are in"):
        run(["list", f"{gcs_bucket}/runs"])
    for path in make(tmp_path, "a", steps=0).iterdir():
        Folder(f"{gcs_bucket}/runs/a").write(path.name, path.read_bytes())
    assert run(["list", f"{gcs_bucket}/runs"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "a"]


def test_a_sweep_is_told_as_one_with_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = SweepFolder(plan(tmp_path), "f" * 64)
    sweep.begin()
    for number in range(5):
        sweep.propose(number, {"model.num_res_blocks": 1})
        write(sweep.trial_url(number), CURVE, curve(3.0, 1.25))
    ended: list[tuple[Status, float]] = [("finished", 0.75), ("diverged", BAD_SCORE)]
    for number, (status, score) in enumerate(ended):
        outcome = Outcome(status=status, reason="", score=score, step=200, images_seen=1600)
        write(sweep.trial_url(number), OUTCOME, outcome)
    make(tmp_path / "s", "s-0002", steps=60)
    (make(tmp_path / "s", "s-0003") / "run_status.json").write_text("[]")
    assert run(["status", sweep.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sweep s: 5 trials, 2 ended"
    assert [line.split() for line in lines[1:]] == [
        ["trial", "state", "step", "score"],
        ["s-0000", "finished", "200", "0.75"],
        ["s-0001", "diverged", "200", "-"],
        ["s-0002", "running", "60", "1.25"],
        ["s-0003", "damaged", "40", "1.25"],
        ["s-0004", "to", "begin", "40", "1.25"],
    ]
    assert run(["list", str(tmp_path)]) == 0
    line = f"sweep s: 5 trials, 2 ended; `python -m drl_dist status {sweep.url}` shows them"
    assert capsys.readouterr().out == line + "\n"
    assert run(["list", sweep.url]) == 0
    assert [row.split()[0] for row in capsys.readouterr().out.splitlines()] == ["run", "s-0002", "s-0003"]
    for words in (["delete", sweep.url, "--yes"], ["compare", sweep.url, sweep.trial_url(2)]):
        with pytest.raises(UserError, match=r"s: got a sweep, whose trials are runs, expected the folder of a run"):
            run(words)


def test_two_runs_are_compared_by_settings_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = make(tmp_path, "one"), make(tmp_path, "other", learning_rate=2e-3, move=1.0)
    out = tmp_path / "both.png"
    for _ in range(2):
        assert run(["compare", str(one), str(other), "--out", str(out)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines[:2]] == [
            ["field", "one", "other"],
            ["optim.learning_rate", "0.001", "0.002"],
        ]
    with Image.open(out) as picture:
        assert picture.width >= MIN_WIDTH and picture.info["Description"] == f"{one} beside {other}"
        assert picture.info["Title"] == "curves of one at step 60, seed 0 and other at step 60, seed 0"
        pixels = np.asarray(picture.convert("RGB"))
    # Both curves are drawn.
    for colour in ((0x1F, 0x77, 0xB4), (0xD9, 0x5F, 0x02)):
        assert (np.abs(pixels.astype(int) - colour).sum(-1) < 12).sum() > 100
    same = make(tmp_path, "same")
    assert run(["compare", str(one), str(same), "--out", str(tmp_path / "same.png")]) == 0
    assert "the settings and the data are the same" in capsys.readouterr().out


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one, empty = make(tmp_path, "one"), make(tmp_path, "empty", steps=0)
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    for words, message in (
        ([str(one), str(empty), "--out", str(mine)], "got a file of something else"),
        ([str(one), str(one)], "got .*one twice, expected two runs"),
        ([str(one), str(tmp_path)], "got no experiment.json there"),
        ([str(one), str(empty), "--out", "x.pdf"], r"option --out: got x\.pdf"),
        (
            [str(empty), str(make(tmp_path, "none", steps=0)), "--out", str(tmp_path / "x.png")],
            "got no metric of either",
        ),
    ):
        with pytest.raises(UserError, match=message):
            run(["compare", *words])
    assert mine.read_bytes() == b"mine" and not (tmp_path / "x.png").exists()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_delete_removes_a_run_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = make(tmp_path, "gone", state="finished"), make(tmp_path, "other")
    foreign = {"notes.txt", "metrics/notes.parquet", "checkpoint_000000050/notes.txt", "checkpoint_1/ema.safetensors"}
    for name in foreign:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    (folder / ".curves.png.0123abcd.part").write_text("torn")
    (folder / ".validate_storage_marker").write_text("")
    (folder / STEP_COSTS).write_text("{}")
    (folder / "metrics" / ".steps_000000001.parquet.0123abcd.part").write_text("torn")
    before = files(other)
    with pytest.raises(UserError, match="got no terminal to ask on, expected an answer, or --yes"):
        run(["delete", str(folder)])
    assert "1 checkpoint, metrics and pictures in" in capsys.readouterr().out
    assert "experiment.json" in files(folder)
    assert run(["delete", str(folder), "--yes"]) == 0
    said = capsys.readouterr().out
    assert "removed " in said and "checkpoint_000000050" in said
    assert "left in" in said and "notes.txt" in said
    assert files(folder) == foreign and files(other) == before
    with pytest.raises(UserError, match=r"got no experiment\.json there"):
        run(["delete", str(folder), "--yes"])
    clean = make(tmp_path, "clean", state="stopped")
    assert run(["delete", str(clean), "--yes"]) == 0
    assert not clean.exists()


def test_delete_asks_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path, "asked", state="finished")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer in ("\n", "no\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert run(["delete", str(folder)]) == 1
        assert "nothing is removed" in capsys.readouterr().out
    assert "experiment.json" in files(folder)
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run(["delete", str(folder)]) == 0
    assert not folder.exists()


def test_delete_refuses_runs_at_work_links_and_folders_that_are_no_runs(tmp_path: Path) -> None:
    folder = make(tmp_path, "busy")
    (tmp_path / "link").symlink_to(make(tmp_path, "linked", state="finished"))
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/samples.png").write_text("mine")
    for name, message in (
        ("busy", "got a run that is at work"),
        ("link", "got a symbolic link"),
        ("photographs", r"got no experiment\.json there"),
        ("nowhere", r"got no experiment\.json there"),
    ):
        before = files(tmp_path)
        with pytest.raises(UserError, match=message):
            run(["delete", str(tmp_path / name), "--yes"])
        assert files(tmp_path) == before
    # One that was killed may be removed.
    status = json.loads((folder / "run_status.json").read_text())
    assert status["state"] == "running"
    assert run(["delete", str(make(tmp_path, "killed", ago=1000)), "--yes"]) == 0


def test_a_delete_that_is_interrupted_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, "half", state="finished")
    with monkeypatch.context() as patch:
        patch.setattr(deletion, "remove_files", lambda url: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(["delete", str(folder), "--yes"])
    assert "experiment.json" in files(folder)
    assert run(["delete", str(folder), "--yes"]) == 0
    assert not folder.exists()


def test_a_damaged_status_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path, "a")
    for text in (
        "[]",
        '{"state": "asleep", "since": 1, "starts": 1}',
        '{"state": "running", "since": "x", "starts": 1}',
    ):
        (folder / "run_status.json").write_text(text)
        with pytest.raises(UserError, match=r"run_status\.json"):
            run(["status", str(folder)])
