"""Training on images in memory gives what the command without Ray gives, and refuses what is no set of images."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import drl_dist
from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.common.waiting import Waiting
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.presets import preset
from drl_dist.config.tree import Experiment
from drl_dist.jobs.train.options import parse_train_options
from drl_dist.jobs.train.single_device import train_on_one_device
from drl_dist.training.in_memory import InMemoryBatches
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState
from tests.helpers.steps import tiny


def pictures(count: int = 10, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def small(**train: int) -> Experiment:
    given = tiny(num_steps=3, **train)
    return dataclasses.replace(
        given,
        model=dataclasses.replace(given.model, width=4),
        mcmc=dataclasses.replace(given.mcmc, num_chain_steps=1),
        train=dataclasses.replace(given.train, batch_size=4),
    )


def trained(images: object, config: object, **more: Any) -> drl_dist.Model:
    return drl_dist.train(images, config, device="cpu", show_progress=False, **more)  # pyright: ignore


@pytest.mark.slow
def test_weights_are_those_of_the_command(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    np.save(tmp_path / "images.npy", pictures().numpy())
    words = f"--data {tmp_path}/images.npy --storage {tmp_path}/runs --run-name a --train.batch-size 4 --train.seed 3"
    words += " --train.num-steps 4 --optim.first-objective-steps 3 --model.width 4 --tracking.num-samples 1"
    run, _ = parse_train_options("digits", ["--without-ray", *words.split(), "--model.data-std", "none"])
    assert train_on_one_device(run) == 0
    ema = read_checkpoint(tmp_path / "runs/a/checkpoint_000000004").tensors["ema"]
    model = trained(pictures(), run.experiment)
    assert model.weights.keys() == ema.keys() and model.step == 4
    for name, value in model.weights.items():
        assert torch.equal(value, ema[name]), name
    other = trained(pictures(), run.experiment, seed=4)
    assert not torch.equal(other.weights["stem.weight"], ema["stem.weight"])


def test_images_of_every_kind_are_the_same() -> None:
    expected = trained(pictures(), small()).weights["stem.weight"]
    for images in (pictures()[:, 0], pictures().numpy(), pictures() / 255, pictures().double().numpy()[:, 0] / 255):
        assert torch.equal(trained(images, small()).weights["stem.weight"], expected)


def test_a_loader_is_cut_into_batches_and_begun_anew() -> None:
    seen: list[int] = []

    class Passes:
        def __iter__(self) -> Iterable[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
            seen.append(1)
            yield pictures(3), "labels"
            yield (pictures(5)[3:],)

    model = trained(Passes(), small())
    # One look, then 12 images of 5 a pass.
    assert model.step == 3 and len(seen) == 4 and model.data == {"source": "Passes"}
    # In order, three passes of four images are three batches of the same four.
    four = trained(DataLoader(TensorDataset(pictures(4)), batch_size=2), small())
    again = trained([pictures(4)], small())
    assert torch.equal(four.weights["stem.weight"], again.weights["stem.weight"])
    assert not torch.equal(four.weights["stem.weight"], model.weights["stem.weight"])


def test_steps_keep_the_share_of_a_first_objective() -> None:
    names: list[tuple[str, ...]] = []

    class Looks:
        def on_step(self, report: StepReport, state: TrainState) -> None:
            names.append(report.result.names)

    unet = drl_dist.train(pictures(), "digits", num_steps=5, callbacks=[Looks()], device="cpu", show_progress=False)
    assert unet.experiment.optim.first_objective_steps == 4 and unet.experiment.preset == "digits_unet"
    assert ["noise_error" in reported for reported in names] == [True] * 4 + [False]


def test_without_a_config_the_rules_make_one() -> None:
    model = trained(pictures(12, 4), None, num_steps=2)
    assert model.experiment.preset == "own_unet" and model.image_shape == (1, 4, 4)
    assert model.experiment.model.data_std is not None
    loader = DataLoader(TensorDataset(pictures(12, 4)), batch_size=3)
    assert trained(loader, None, num_steps=2).experiment.train.batch_size == 8


def test_what_takes_long_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Slow:
        """A loader whose second pass takes long."""

        passes = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.passes += 1
            time.sleep(0.3 if self.passes == 2 else 0)
            return iter([pictures()])

    module = sys.modules["drl_dist.library.train"]
    monkeypatch.setattr(module, "Waiting", partial(Waiting, seconds=0.2))
    drl_dist.train(Slow(), small(), device="cpu")
    said = capsys.readouterr().out
    assert "training: the first images and step 1 are to come, for " in said
    monkeypatch.setattr(module, "Waiting", None)
    trained(Slow(), small())
    assert capsys.readouterr().out == ""


def test_progress_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    drl_dist.train(pictures(), small(), device="cpu")
    assert capsys.readouterr().out.splitlines()[0] == "step 1/3: under way"
    trained(pictures(), small())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("images", "config", "more", "message"),
    [
        ("digits", None, {}, "images: got str"),
        (None, None, {}, "images: got NoneType"),
        ({"a": 1}, None, {}, "images: got dict"),
        ([], None, {}, "images: got a loader without batches"),
        ([["a"]], None, {}, "batch of the loader: got str"),
        (iter([pictures()]), None, {}, "which can be iterated over once"),
        ([pictures()], None, {}, "got none, with a loader that does not tell how many images"),
        ([pictures(4), pictures(4, 4)], small(), {}, r"batch of the loader: got images of shape \(1, 4, 4\)"),
        (pictures(4, 7), "digits", {}, r"got images of shape \(1, 7, 7\), expected \(1, 8, 8\), as the config digits"),
        (pictures(4, 17), None, {}, "resolution of the images: got 17"),
        (pictures(), "digit", {}, "preset: got digit"),
        (pictures(), 3, {}, "argument config: got int"),
        (pictures(), small(), {"num_steps": 0}, "train.num_steps: got 0"),
        (pictures(), "digits", {"num_steps": 1}, "first_objective_steps: got 1 of the 1 step of"),
        (pictures(), small(), {"seed": -1}, "train.seed: got -1"),
        (pictures(), small(), {"callbacks": [print]}, "argument callbacks: got builtin_function_or_method"),
        (pictures(), small(), {"callbacks": None}, "argument callbacks: got NoneType, expected a list of objects"),
        (pictures(), small(), {"seed": "4"}, "argument seed: got '4', expected a whole number"),
        (pictures(), small(), {"num_steps": 2.0}, "argument num_steps: got 2.0, expected a whole number"),
        (pictures(), small(), {"engine": "fast"}, "argument engine: got str"),
        (torch.zeros(4, 1, 8, 8), "cifar10", {}, "got images of shape"),
        (torch.zeros(4, 1, 8, 8), None, {}, "images whose pixels are all equal"),
        (torch.zeros(4, 2, 8, 8), None, {}, r"got shape \(4, 2, 8, 8\)"),
        (torch.zeros(4, 1, 8, 9), None, {}, r"got shape \(4, 1, 8, 9\)"),
    ],
)
def test_what_cannot_be_trained_is_refused(images: object, config: object, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        trained(images, config, **more)
    assert "\n" not in str(error.value)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match="device: got cuda:99"):
        drl_dist.train(pictures(), small(), device="cuda:99")


def labelled_images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.arange(40) % 3


def test_labels_make_a_model_that_knows_them() -> None:
    images, labels = labelled_images()
    model = drl_dist.train(images, labels=labels, label_names=["a", "b", "c"], num_steps=3, show_progress=False)
    assert model.experiment.condition == ConditionConfig(kind="class", names=("a", "b", "c"))
    assert bool(model.weights["condition.table"].any()) and model.sample(1, labels=["a"]).shape == (1, 1, 8, 8)
    numbered = drl_dist.train(images, labels=labels.tolist(), num_steps=2, show_progress=False)
    assert numbered.experiment.condition.names == ("0", "1", "2")
    # A loader of the same images in the same order makes the same model.
    config = model.experiment
    order = [
        batch for _, batch in zip(range(3), InMemoryBatches(images, seed=0, batch_size=8, labels=labels), strict=False)
    ]
    assert config.train.batch_size == 8
    loader = [(batch.images, batch.labels) for batch in order]
    again = drl_dist.train(loader, config, show_progress=False)
    for name, value in model.weights.items():
        assert torch.equal(value, again.weights[name]), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [0, 1]}, r"labels: got torch.int64 of shape \(2,\), expected 40 whole numbers"),
        ({"labels": torch.zeros(40)}, "labels: got torch.float32"),
        ({"labels": ["a"] * 40}, "labels: got list, expected 40 whole numbers"),
        ({"labels": [-2] * 40}, "labels: got numbers from -2 to -2"),
        ({"labels": [5] * 40, "label_names": ["a"]}, "argument label_names: got 1 names, expected a name for each of"),
        ({"label_names": ["a"]}, "argument label_names: got names, without labels"),
    ],
)
def test_labels_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        drl_dist.train(labelled_images()[0], num_steps=1, show_progress=False, **given)


def test_labels_of_a_loader_must_be_there() -> None:
    images, labels = labelled_images()
    config = dataclasses.replace(preset("digits"), condition=ConditionConfig(kind="class", names=("a", "b", "c")))
    with pytest.raises(UserError, match="argument labels: got labels beside a loader"):
        drl_dist.train([images], config, labels=labels, num_steps=1, show_progress=False)
    with pytest.raises(UserError, match="labels: got NoneType, expected 40 whole numbers"):
        drl_dist.train([images], config, num_steps=1, show_progress=False)
    with pytest.raises(UserError, match=r"labels: got numbers from 0 to 2, .* to 1"):
        two = dataclasses.replace(config, condition=ConditionConfig(kind="class", names=("a", "b")))
        drl_dist.train([(images, labels)], two, num_steps=1, show_progress=False)
    with pytest.raises(UserError, match="argument labels: got none, expected numbers of classes"):
        drl_dist.train(images, config, num_steps=1, show_progress=False)
