"""A saved model is read anywhere, and whatever else a folder holds is neither trusted nor lost."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import drl_dist
from drl_dist.build import build_network, weight_shapes
from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.checkpoints.warm_start import starting_point
from drl_dist.common.errors import UserError
from drl_dist.config.tree import Experiment
from drl_dist.jobs.edit.driver import interpolate_run
from drl_dist.jobs.edit.options import InterpolateOptions
from drl_dist.library import folder as saved_folder
from drl_dist.library.stored import load_model
from drl_dist.tracking.registry import ResolvedModel
from drl_dist.training.state import TrainState
from tests.helpers.steps import tiny, tiny_unet
from tests.support import ROOT, flip_bit


@pytest.fixture
def saved(model: drl_dist.Model, tmp_path: Path) -> Path:
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_is_the_model(model: drl_dist.Model, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = drl_dist.load(saved)
    assert again.experiment == model.experiment and again.step == model.step == 3
    assert torch.equal(again.sample(3, seed=1), model.sample(3, seed=1))
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert file.metadata()["library"] == "drl_dist" and file.metadata()["step"] == "3"
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: drl_dist\n") and "drl_dist.load" in card and "# license:" in card
    assert "too sharp to be densities" in card


def test_a_checkpoint_a_run_and_a_url_are_the_same_model(
    model: drl_dist.Model, checkpoint: Path, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "run/checkpoint_000000003")
    expected = model.sample(1)
    for place in (str(checkpoint), tmp_path / "run", saved.as_uri(), os.path.relpath(saved)):
        assert torch.equal(drl_dist.load(place).sample(1), expected)


def test_jobs_take_a_saved_model_as_the_checkpoint_that_it_was(
    model: drl_dist.Model, checkpoint: Path, saved: Path, tmp_path: Path
) -> None:
    found, expected = load_model(str(saved), None), load_model(str(checkpoint), None)
    assert (found.experiment, found.step, found.version) == (expected.experiment, expected.step, None)
    assert found.data_fingerprint == expected.data_fingerprint != ""
    assert found.ema.keys() == expected.ema.keys()
    assert all(np.array_equal(found.ema[name], expected.ema[name]) for name in expected.ema)
    config = json.loads((saved / "config.json").read_text())
    assert found.ema_sha256 == config["sha256"]["model.safetensors"]
    assert found.config_sha256 == saved_folder._sha256(saved / "config.json")
    pictures = []
    for place in (saved, checkpoint):
        out = tmp_path / f"of-{place.name}"
        assert interpolate_run(InterpolateOptions(model=str(place), out=str(out), pairs=1, columns=3)) == 0
        pictures.append({path.name: path.read_bytes() for path in (out / "images").iterdir()})
    assert pictures[0] == pictures[1] and len(pictures[0]) == 3
    # Nothing in it can be trained on.
    with pytest.raises(UserError, match=r"checkpoint .*/saved: got a saved model, which holds nothing to train on"):
        starting_point(str(saved), model.experiment, "f00d")


def test_a_snapshot_of_a_hub_is_read(model: drl_dist.Model, saved: Path, tmp_path: Path) -> None:
    # As huggingface_hub lays its cache out: links to files that are named by their content.
    snapshot = tmp_path / "models--me--digits/snapshots/0123456789abcdef"
    blobs = tmp_path / "models--me--digits/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(saved.iterdir()):
        path.rename(blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert torch.equal(drl_dist.load(snapshot).sample(1), model.sample(1))


def test_an_address_of_the_registry(model: drl_dist.Model, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def resolve(reference: str, uri: str | None, into: Path) -> ResolvedModel:
        asked.append((reference, uri))
        return ResolvedModel("tiny", 1, 3, "run", checkpoint)

    monkeypatch.setattr("drl_dist.tracking.registry.resolve_model", resolve)
    found = drl_dist.load("models:/tiny@best", tracking_uri="http://127.0.0.1:1")
    assert torch.equal(found.sample(1), model.sample(1)) and asked == [("models:/tiny@best", "http://127.0.0.1:1")]


def test_saving_again_replaces_the_model_and_nothing_else(model: drl_dist.Model, saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    other = drl_dist.Model(model.experiment, {n: v * 0.5 for n, v in model.weights.items()}, step=9)
    other.save(saved)
    assert drl_dist.load(saved).step == 9 and (saved / "notes.txt").read_text() == "mine"
    assert "| steps | 9 of 3" in (saved / "README.md").read_text()
    (saved / "README.md").write_text("my own card")
    model.save(saved)
    assert (saved / "README.md").read_text() == "my own card" and drl_dist.load(saved).step == 3


@pytest.mark.parametrize("is_there", [False, True])
def test_a_failure_leaves_nothing_half_written(
    model: drl_dist.Model, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    place = saved if is_there else tmp_path / "new"
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_folder, "model_card", full)
    with pytest.raises(UserError, match="No space left on device"):
        model.save(place)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_folders_of_something_else_are_refused(model: drl_dist.Model, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for place, message in [
        (tmp_path / "full", "got thesis.tex of something else, expected a new or an empty folder"),
        (checkpoint, "got checksums.json, config.json, ema.safetensors, … of something else"),
        (tmp_path / "file", "got a file"),
        ("gs://bucket/model", "folder of the model: got"),
        (tmp_path / "file/below", "expected a folder that can be written"),
    ]:
        with pytest.raises(UserError, match=message):
            model.save(place)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    model.save(tmp_path / "empty")
    assert drl_dist.load(tmp_path / "empty").step == 3


def edited(**fields: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return edit


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Other tensors, whose checksum the config has."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        edited(sha256={"model.safetensors": saved_folder._sha256(folder / "model.safetensors")})(folder)

    return edit


def of_network(**fields: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        experiment = json.loads((folder / "config.json").read_text())["experiment"]
        experiment["model"] |= fields
        edited(experiment=experiment)(folder)

    return edit


SPOILED: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "config.json").unlink(), "config.json: got no such file"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json: got no JSON"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "config.json: got a JSON list"),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json: got no JSON"),
    (lambda folder: (folder / "config.json").write_text(" " * (2**20 + 1)), "expected at most 1048576"),
    (lambda folder: flip_bit(folder / "model.safetensors"), "got SHA-256"),
    (lambda folder: os.truncate(folder / "model.safetensors", 100), "got SHA-256"),
    (edited(format="gpt2"), "got format 'gpt2', version 1"),
    (edited(version=2), "version 2, expected 'drl_dist.model', version 1.*newer drl_dist"),
    (edited(step="many"), "field step: got many"),
    (edited(step=True), "field step: got True"),
    (edited(data=3), "field data: got 3"),
    (edited(sha256=None), "field sha256: got None"),
    (edited(experiment=[]), r"field experiment: got \[\]"),
    (edited(experiment={}), "field preset: got"),
    (of_network(nonsense=1), "field model.nonsense: got 1"),
    (of_network(channels=2), "config field model.channels: got 2"),
    (of_network(width=10**9), "config.json: got Storage size calculation overflowed"),
    (of_network(width=10**5), r"head.bias of shape \(8,\), expected \(200000,\) by"),
    (of_network(num_res_blocks=10**9), "expected those of 1000000000 blocks a level"),
    (of_network(network="unet"), "mcmc.energy_scale: got step_size"),
    (with_tensors(lambda tensors: tensors.pop("stem.bias")), "tensors that differ in stem.bias"),
    (with_tensors(lambda tensors: tensors.update(more=torch.ones(1))), "tensors that differ in more"),
    (with_tensors(lambda tensors: tensors.update({"stem.bias": torch.ones(5)})), r"stem.bias of shape \(5,\)"),
    (with_tensors(lambda t: t.update({"stem.bias": t["stem.bias"].double()})), "stem.bias of torch.float64"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILED)
def test_a_spoiled_folder_is_refused_in_one_sentence(
    saved: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(saved)
    with pytest.raises(UserError, match=message) as error:
        drl_dist.load(saved)
    assert "\n" not in str(error.value)


def test_a_pickle_is_never_read(saved: Path) -> None:
    content = b"cposix\nsystem\n(S'exit 1'\ntR."
    (saved / "model.safetensors").write_bytes(content)
    edited(sha256={"model.safetensors": saved_folder._sha256(saved / "model.safetensors")})(saved)
    with pytest.raises(UserError, match=r"model\.safetensors: got .*expected safetensors"):
        drl_dist.load(saved)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere", "model nowhere: got no such folder"),
        ("/nowhere/at/all", "got no such folder"),
        ("models:/digits", "expected models:/NAME@ALIAS"),
        ("ftp://host/model", "ftp://host/model"),
        ("", "storage URL: got "),
    ],
)
def test_an_address_without_a_model(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drl_dist.load(address)


def test_an_empty_folder_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got no complete checkpoint there or directly below"):
        drl_dist.load(tmp_path)


@pytest.mark.parametrize("experiment", [tiny(), tiny_unet(attention_resolutions=(4,))], ids=["resnet", "unet"])
def test_shapes_are_those_of_the_network(experiment: Experiment) -> None:
    expected = {name: tuple(value.shape) for name, value in build_network(experiment).state_dict().items()}
    assert weight_shapes(experiment) == expected


def test_a_model_of_other_peoples_code_needs_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    monkeypatch.delitem(sys.modules, "my_network", raising=False)
    given = tiny()
    experiment = dataclasses.replace(
        given, model=dataclasses.replace(given.model, network="my_network:MyNetwork", options='{"width": 4}')
    )
    state = TrainState.create(experiment)
    mine = drl_dist.Model.of_state(experiment, state)
    mine.save(tmp_path / "saved")
    reached = CheckpointState.after(0, experiment, "0" * 64, world_size=1)
    write_checkpoint(tmp_path / "checkpoint", state.tensors(), reached, experiment)
    for place in ("saved", "checkpoint"):
        monkeypatch.delitem(sys.modules, "my_network", raising=False)
        with pytest.raises(UserError, match="got my_network:MyNetwork, code that is not part of drl_dist"):
            drl_dist.load(tmp_path / place)
        with pytest.raises(UserError, match="--allow-code my_network:MyNetwork"):
            drl_dist.load(tmp_path / place, allow_code=["my_network"])
        assert "my_network" not in sys.modules
        again = drl_dist.load(tmp_path / place, allow_code=["my_network:MyNetwork"])
        assert torch.equal(again.sample(1), mine.sample(1))
