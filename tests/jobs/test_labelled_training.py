"""Training on labelled shards: the data's names are the run's, and a resumed run is the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.common.errors import UserError
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train.options import parse_train_options
from drl_dist.jobs.train.single_device import train_on_one_device
from tests.data.sets import write_set


def options(data: object, storage: Path, name: str, num_steps: int, *more: str) -> RunConfig:
    words = {
        "--data": data,
        "--storage": storage,
        "--run-name": name,
        "--setting": "unet",
        "--model.width": 8,
        "--model.time-embedding-dim": 8,
        "--model.time-hidden-dim": 16,
        "--mcmc.num-chain-steps": 1,
        "--train.batch-size": 12,
        "--optim.first-objective-steps": 1,
        "--optim.warmup-steps": 0,
        # A cosine depends on how many steps there are.
        "--optim.final-rate-factor": 1,
        "--checkpoint.every-steps": 2,
        "--tracking.num-samples": 10,
        "--tracking.sample-every-steps": 100,
        "--tracking.uri": "none",
        "--train.num-steps": num_steps,
    }
    argv = [text for option, value in words.items() for text in (option, str(value))]
    return parse_train_options("digits", [*argv, "--without-ray", *more])[0]


def averaged(storage: Path, name: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(storage / name / checkpoint_name(step) / "ema.safetensors")


@pytest.mark.integration
def test_a_labelled_run_is_resumed_to_the_same_weights(digits: Path, tmp_path: Path) -> None:
    labelled = ("--condition.kind", "class")
    assert train_on_one_device(options(digits, tmp_path, "whole", 4, *labelled)) == 0
    for num_steps in (2, 4):
        assert train_on_one_device(options(digits, tmp_path, "halves", num_steps, *labelled)) == 0
    whole, halves = averaged(tmp_path, "whole", 4), averaged(tmp_path, "halves", 4)
    assert whole.keys() == halves.keys() and bool(whole["condition.table"].any())
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
    record = json.loads((tmp_path / "whole" / "experiment.json").read_text())
    assert record["experiment"]["condition"]["names"] == [str(digit) for digit in range(10)]
    with pytest.raises(UserError, match=r"got changed fields condition\.dropout: 0\.1 -> 0\.3"):
        train_on_one_device(options(digits, tmp_path, "halves", 6, *labelled, "--condition.dropout", "0.3"))

    # A run without labels goes on as one that knows them, and not the other way round.
    assert train_on_one_device(options(digits, tmp_path, "plain", 2)) == 0
    more = (*labelled, "--start-from", str(tmp_path / "plain"))
    assert train_on_one_device(options(digits, tmp_path, "learned", 4, *more)) == 0
    learned, plain = averaged(tmp_path, "learned", 4), averaged(tmp_path, "plain", 2)
    assert learned.keys() - plain.keys() == {"condition.table"} and bool(learned["condition.table"].any())
    with pytest.raises(UserError, match=r"--start-from .*: got condition"):
        train_on_one_device(options(digits, tmp_path, "back", 8, "--start-from", str(tmp_path / "whole")))


def test_data_without_names_of_their_labels_are_refused(tmp_path: Path) -> None:
    data, storage = tmp_path / "data", tmp_path / "runs"
    write_set(str(data), measured=True)
    with pytest.raises(UserError, match=r"data .* \(toy\): got images without classes, expected classes with names"):
        train_on_one_device(options(data, storage, "a", 2, "--condition.kind", "class"))
    with pytest.raises(UserError, match="got images without attributes"):
        train_on_one_device(options(data, storage, "a", 2, "--condition.kind", "attributes"))
    assert not storage.exists()
