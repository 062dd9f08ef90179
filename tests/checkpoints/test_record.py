"""A run name keeps its meaning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from drl_dist.checkpoints.format import Checkpoint, CheckpointState
from drl_dist.checkpoints.run_record import check_checkpoint, check_record, continued, write_record
from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten, to_dict
from drl_dist.config.presets import NEWER_FIELDS, SETTINGS, preset
from drl_dist.config.tree import Experiment, RunConfig, TrainConfig


def test_the_same_experiment_is_accepted_and_another_refused_with_its_differences(tmp_path: Path) -> None:
    url, experiment = (tmp_path / "run").as_uri(), preset("digits")
    check_record(url, experiment, "f00d")
    write_record(url, experiment, "f00d")
    check_record(url, experiment, "f00d")
    longer = dataclasses.replace(experiment.train, num_steps=9_999)
    check_record(url, dataclasses.replace(experiment, train=longer), "f00d")

    other = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, width=8), train=dataclasses.replace(longer, seed=1)
    )
    with pytest.raises(UserError, match=r"model\.width: 32 -> 8; train\.seed: 0 -> 1, expected") as caught:
        check_record(url, other, "f00d")
    assert "num_steps" not in str(caught.value)
    with pytest.raises(UserError, match=r"data_fingerprint: f00d -> beef"):
        check_record(url, experiment, "beef")


def test_a_record_of_a_version_without_some_field_is_that_of_its_default(tmp_path: Path) -> None:
    url, experiment = str(tmp_path), preset("digits")
    write_record(url, experiment, "f00d")
    stored = json.loads((tmp_path / "experiment.json").read_text())
    del stored["experiment"]["model"]["spectral_norm"], stored["experiment"]["optim"]["loss_weight"]
    (tmp_path / "experiment.json").write_text(json.dumps(stored))
    check_record(url, experiment, "f00d")
    model = dataclasses.replace(experiment.model, spectral_norm=False)
    with pytest.raises(UserError, match=r"model\.spectral_norm: True -> False, expected"):
        check_record(url, dataclasses.replace(experiment, model=model), "f00d")


def test_machine_fields_are_no_part_of_it(tmp_path: Path) -> None:
    write_record(str(tmp_path), preset("digits"), "f00d")
    text = (tmp_path / "experiment.json").read_text()
    assert all(field.name in text for field in dataclasses.fields(TrainConfig))
    assert not [name for name in ("num_workers", "precision", "cache_dir", "uri") if f'"{name}"' in text]


def test_a_torn_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text('{"experiment": {')
    with pytest.raises(UserError, match=r"experiment\.json: got no JSON"):
        check_record(str(tmp_path), preset("digits"), "f00d")


def test_what_a_run_goes_on_from_is_part_of_it(tmp_path: Path) -> None:
    url, experiment = str(tmp_path), preset("digits")
    write_record(url, experiment, "f00d", "/runs/other/checkpoint_000000040")
    check_record(url, experiment, "f00d", "/runs/other/checkpoint_000000040")
    with pytest.raises(UserError, match="start_from: /runs/other/checkpoint_000000040 -> absent"):
        check_record(url, experiment, "f00d")


@pytest.mark.parametrize(
    "name", ["substitutes.jsonl", "rollbacks.json", "step_costs.json", "checkpoint_manager_snapshot.json"]
)
def test_a_folder_of_something_else_is_no_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    check_record(str(tmp_path), preset("digits"), "f00d")
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"got {name} of something else, without experiment.json"):
        check_record(str(tmp_path), preset("digits"), "f00d")
    write_record(str(tmp_path), preset("digits"), "f00d")
    check_record(str(tmp_path), preset("digits"), "f00d")


def test_a_run_of_before_a_field_was_chosen_continues_as_it_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunConfig(experiment=preset("digits", "t1k"), storage=str(tmp_path), run_name="old")
    before = dataclasses.replace(run.experiment.mcmc, normal_spread="transition")
    old = dataclasses.replace(run.experiment, mcmc=before)
    (tmp_path / "old").mkdir()
    record = tmp_path / "old" / "experiment.json"
    stored = to_dict(old)
    del stored["mcmc"]["normal_spread"]
    record.write_text(json.dumps({"experiment": stored, "data_fingerprint": "f00d"}))
    # Again and again: the record stays one of before.
    for _ in range(2):
        found = continued(run)
        assert found == dataclasses.replace(run, experiment=old)
        told = "run old was begun before mcmc.normal_spread could be chosen, and continues with transition\n"
        assert capsys.readouterr().out == told
        check_record(run.url, found.experiment, "f00d")
        write_record(run.url, found.experiment, "f00d")
    # What is asked for explicitly is not passed over, but refused.
    assert continued(run, ["mcmc.normal_spread"]) == run
    with pytest.raises(UserError, match=r"mcmc\.normal_spread: transition -> posterior"):
        check_record(run.url, run.experiment, "f00d")
    # A new run, and one whose record knows the field, are what they are.
    write_record(str(tmp_path / "new"), run.experiment, "f00d")
    for name in ("new", "none"):
        assert continued(dataclasses.replace(run, run_name=name)).experiment == run.experiment
    assert capsys.readouterr().out == ""


def test_the_newer_fields_stand_otherwise_in_a_preset_than_where_they_lack() -> None:
    absent = flatten(to_dict(Experiment(preset="")))
    for name in NEWER_FIELDS:
        values = {flatten(to_dict(preset("digits", setting)))[name] for setting in SETTINGS}
        assert values - {absent[name]}


def test_a_checkpoint_of_another_run_is_refused() -> None:
    experiment = preset("digits")
    run = RunConfig(experiment=experiment, start_from="/other")

    def check(found: Experiment, url: str = "/run/checkpoint_000000001", fingerprint: str = "f") -> None:
        state = CheckpointState.after(1, found, "f", 1)
        check_checkpoint(Checkpoint(experiment=found, state=state, tensors={}), url, run, fingerprint)

    def trained(**changes: Any) -> Experiment:
        return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **changes))

    check(experiment)
    check(trained(num_steps=5))
    check(trained(seed=1), url="/other")
    with pytest.raises(UserError, match=r"got train\.seed: 1 -> 0, expected a checkpoint of this run"):
        check(trained(seed=1))
    with pytest.raises(UserError, match="got a checkpoint of a run on other data"):
        check(experiment, fingerprint="g")
