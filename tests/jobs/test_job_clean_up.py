"""What sampling, likelihood and training jobs remove: their own files, by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from drl_dist.checkpoints.storage import FILES, StoredCheckpoint, checkpoint_name
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.data.index import open_index, write_index
from drl_dist.jobs.common.output.job_records import Record, Records
from drl_dist.jobs.edit.output import EditOutput
from drl_dist.jobs.likelihood.output import LikelihoodOutput
from drl_dist.jobs.likelihood.task import LikelihoodRequest
from drl_dist.jobs.sample.output import SampleOutput
from drl_dist.jobs.sample.task import SampleRequest
from drl_dist.jobs.train.storage import drop_stale_snapshot, ray_filesystem
from drl_dist.tracking.spool import CheckpointRecord, ImageRecord, Spool
from drl_dist.tracking.sync import sync
from tests.helpers.notes import assert_notes, checkpoint, keep_notes
from tests.helpers.preparation import PNG, prepare

SAMPLES = SampleRequest(
    preset="digits",
    ema_sha256="0" * 64,
    config_sha256="1" * 64,
    num_images=4,
    seed=0,
    noise_scale=1.0,
    shard_size=2,
    batch_size=2,
    device="cpu",
    threads=1,
)
LIKELIHOOD = LikelihoodRequest(
    preset="digits",
    ema_sha256="0" * 64,
    config_sha256="1" * 64,
    data_fingerprint="2" * 64,
    num_images=4,
    num_chains=4,
    chain_lengths=(1,),
    seed=0,
    num_leapfrog_steps=2,
    batch_size=4,
    precision="float64",
    device="cpu",
    threads=1,
    adapt=None,
    schedule_sha256=None,
)


@pytest.mark.parametrize("job", ["sample", "likelihood"])
def test_records_go_and_notes_stay(job: str, tmp_path: Path) -> None:
    out = tmp_path / "out::v2"
    keep_notes(tmp_path / "out")
    keep_notes(out)
    keep_notes(out / "_progress")
    if job == "sample":
        output, records = SampleOutput(str(out), preset("digits"), SAMPLES), ["00000.json", "00001.json"]
        part, request = ".digits-generated-00001.tar.0123abcd.part", SAMPLES.to_record()
    else:
        output = LikelihoodOutput(str(out), LIKELIHOOD, 6)
        records = [f"{task:06d}.safetensors" for task in range(3)]
        part, request = ".likelihood.json.0123abcd.part", LIKELIHOOD.fields
    output.clean_up()
    for name in records:
        (out / "_progress" / name).write_text("mine")
    output.clean_up()
    # Nobody has said whose these are.
    assert all((out / "_progress" / name).exists() for name in records)
    (out / "_progress" / "request.json").write_text(json.dumps(request))
    (out / part).write_text("half")
    output.clean_up()
    assert_notes(tmp_path / "out")
    assert_notes(out)
    assert_notes(out / "_progress")
    left = {path.name for path in (out / "_progress").iterdir()}
    assert not left & {*records, "request.json"}
    assert not (out / part).exists()
    for path in (out / "_progress").iterdir():
        path.unlink()
    output.clean_up()
    assert not (out / "_progress").exists()


@pytest.mark.parametrize("job", ["edit", "likelihood", "sample"])
@pytest.mark.parametrize(
    "name",
    [
        "IMG_0001.jpg",
        "inpainting.png",
        "images/00003-007.png",
        "_progress/000000.safetensors",
        "_progress/00001.json",
        "_progress/notes.txt",
        "_progress/request.json",
    ],
)
def test_folders_of_others_are_refused(job: str, name: str, tmp_path: Path) -> None:
    checks = {
        "edit": EditOutput(str(tmp_path), "inpainting.png", {"seed": 1}, 1).is_complete,
        "likelihood": LikelihoodOutput(str(tmp_path), LIKELIHOOD, 6).finished_report,
        "sample": SampleOutput(str(tmp_path), preset("digits"), SAMPLES).is_complete,
    }
    # What file managers leave, and killed writes.
    (tmp_path / "_progress").mkdir()
    for hidden in (".DS_Store", "_progress/.request.json.0123abcd.part"):
        (tmp_path / hidden).write_text("hidden")
    assert not checks[job]()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{")
    found = name if job == "edit" or not name.startswith("images") else "images"
    with pytest.raises(UserError, match=rf"got ({found} of something else, expected an empty |a damaged request.json)"):
        checks[job]()


def test_samples_and_prepared_data_do_not_take_each_others_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PNG)
    words = ("--source", tmp_path / "pictures", "--resolution", 8, "--out")
    assert prepare("folder", monkeypatch, *words, tmp_path / "data") == 0
    with pytest.raises(UserError, match=r"/data: got data or results of another kind, expected an empty folder, or "):
        SampleOutput(str(tmp_path / "data"), preset("digits"), SAMPLES).is_complete()
    index = dataclasses.replace(open_index(str(tmp_path / "data")), made_by=SAMPLES.to_record())
    write_index(index)
    with pytest.raises(UserError, match=r"/data: got 1 image that a model has generated, expected an empty folder, or"):
        prepare("folder", monkeypatch, *words, tmp_path / "data")


def test_what_would_be_written_over_is_named_first(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg", "grid.png"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=r"got grid\.png, a\.jpg, b\.jpg and 1 more of something else"):
        SampleOutput(str(tmp_path), preset("digits"), SAMPLES).is_complete()


def test_records_of_another_request_stay(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    ours, theirs = (Record({"x": np.zeros(3)}, {}).to_bytes(digest) for digest in ("a" * 64, "b" * 64))
    files = {"1": ours, "2": theirs, "3": b"mine", "4": b"", "5": ours, "6": b"\xff" * 20}
    records.write(files)
    records.remove_bound(["1", "2", "3", "4", "6", "7"], "a" * 64)
    assert {path.name for path in (tmp_path / "_progress").iterdir()} == {"2", "3", "4", "5", "6"}


@pytest.mark.parametrize("job", ["sample", "likelihood"])
def test_records_behind_a_link_stay(job: str, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    out.mkdir()
    mine.mkdir()
    (out / "_progress").symlink_to(mine)
    (mine / "request.json").write_text("{}")
    (mine / "00000.json").write_text("mine")
    (mine / "000000.safetensors").write_text("mine")
    if job == "sample":
        SampleOutput(str(out), preset("digits"), SAMPLES).clean_up()
    else:
        LikelihoodOutput(str(out), LIKELIHOOD, 6).clean_up()
    assert len(list(mine.iterdir())) == 3
    assert (out / "_progress").is_symlink()


@pytest.mark.parametrize("name", ["runs", "runs::v2 50%20 #1 [a]?*"])
def test_ray_deletes_a_checkpoints_own_files(name: str, tmp_path: Path) -> None:
    """Through the filesystem object that Ray Train is given, as its workers get it."""
    run = tmp_path / name / "r"
    for step in (10, 20):
        checkpoint(run / checkpoint_name(step))
    keep_notes(run / checkpoint_name(10))
    checkpoint(run / "checkpoint_mine")
    filesystem, path = cloudpickle.loads(cloudpickle.dumps(ray_filesystem(f"{tmp_path}/{name}")))
    assert path == f"{tmp_path}/{name}"
    filesystem.delete_dir(f"{path}/r/{checkpoint_name(20)}")
    filesystem.delete_dir(f"{path}/r/{checkpoint_name(10)}")
    assert not (run / checkpoint_name(20)).exists()
    assert_notes(run / checkpoint_name(10))
    with pytest.raises(PermissionError):
        filesystem.delete_dir(f"{path}/r/checkpoint_mine")
    assert sorted(one.name for one in (run / "checkpoint_mine").iterdir()) == sorted(FILES)
    with filesystem.open_output_stream(f"{path}/r/list.json") as stream:
        stream.write(b"{}")
    assert (run / "list.json").read_bytes() == b"{}"


def test_a_list_that_names_other_folders_is_not_handed_to_ray(tmp_path: Path) -> None:
    import ray

    checkpoint(tmp_path / checkpoint_name(10))
    checkpoint(tmp_path / ".." / "aside")
    for names, is_dropped in (([checkpoint_name(10)], False), ([checkpoint_name(10), "../aside"], True)):
        snapshot = {
            "ray_version": ray.__version__,
            "checkpoint_results": [{"checkpoint_dir_name": name} for name in names],
        }
        (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
        newest = StoredCheckpoint(f"{tmp_path}/{checkpoint_name(10)}", 10)
        assert drop_stale_snapshot(str(tmp_path), newest) is is_dropped


def test_a_spool_drops_only_what_it_named(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "lock").write_text("mine")
    spool = Spool(tmp_path)
    own = spool.new_payload(".png")
    own.write_bytes(b"x")
    spool.drop_payload(ImageRecord("samples", 1, 1, own.name))
    assert not own.exists()
    spool.drop_payload(CheckpointRecord("tiny", 1, "../mine", {}))
    spool.drop_payload(ImageRecord("samples", 1, 1, "../mine/notes.txt"))
    spool.close()
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "lock").read_text() == "mine"


@pytest.mark.parametrize("text", [None, "[]", "{}", '{"uri": "u", "run_id": 1}', '{"uri": "u", "run_id": "r"}', "\xff"])
def test_a_folder_that_is_no_spool_is_left_alone(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"spool .*expected the folder that a training run spools to"):
        sync(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ([] if text is None else ["run.json"])
