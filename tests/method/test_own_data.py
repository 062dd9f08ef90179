"""The rules of thumb for images of any size: what was measured comes out again, and every size gets a network."""

from __future__ import annotations

import dataclasses
import re

import pytest

from drl_dist.common.errors import UserError
from drl_dist.config.from_data import FROM_DATA, left_to_data
from drl_dist.config.own_data import experiment_for
from drl_dist.config.presets import SETTINGS, preset
from drl_dist.config.rules import check_training
from drl_dist.config.tree import Experiment


def sizes(experiment: Experiment) -> tuple[object, ...]:
    model = experiment.model
    return (model.width, model.width_multipliers, model.num_res_blocks, model.patch_size, experiment.train.batch_size)


@pytest.mark.parametrize(
    ("name", "num_images"),
    [
        ("digits", 1797),
        ("fashion_mnist", 60_000),
        ("cifar10", 50_000),
        ("celeba64", 162_770),
        ("lsun_church64", 126_227),
        ("lsun_church128", 126_227),
    ],
)
def test_the_rules_give_the_unets_of_the_presets(name: str, num_images: int) -> None:
    made = preset(name, "unet")
    own = experiment_for(
        resolution=made.model.resolution, channels=made.model.channels, num_images=num_images, setting="unet"
    )
    assert own.preset == "own_unet"
    assert sizes(own) == sizes(made)
    assert own.optim.learning_rate == pytest.approx(made.optim.learning_rate, rel=0.25)
    assert own.train.num_steps == pytest.approx(made.train.num_steps, rel=0.15)
    if name in ("digits", "fashion_mnist"):
        assert own.diffusion.num_levels == made.diffusion.num_levels


@pytest.mark.parametrize(
    ("name", "num_images"),
    [("digits", 1797), ("cifar10", 50_000), ("lsun_church64", 126_227), ("lsun_church128", 126_227)],
)
def test_the_rules_give_the_rows_of_table_6(name: str, num_images: int) -> None:
    made = preset(name)
    own = experiment_for(
        resolution=made.model.resolution, channels=made.model.channels, num_images=num_images, setting="t6"
    )
    assert own.preset == "own"
    assert sizes(own) == sizes(made)
    assert (own.optim.beta1, own.optim.learning_rate) == (made.optim.beta1, made.optim.learning_rate)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_gets_an_experiment_or_the_nearest_sizes_that_do(channels: int, setting: str) -> None:
    fits = []
    for resolution in range(1, 300):
        try:
            experiment = experiment_for(resolution=resolution, channels=channels, num_images=500, setting=setting)
        except UserError as error:
            nearest = [int(size) for size in re.findall(r"\d+", error.remedy)]
            for size in nearest:
                experiment_for(resolution=size, channels=channels, num_images=500, setting=setting)
            assert any(size > resolution for size in nearest)
            assert resolution < 5 or any(size < resolution for size in nearest)
        else:
            fits.append(resolution)
            check_training(experiment)
            model, num_pools = experiment.model, len(experiment.model.width_multipliers) - 1
            bottom = resolution / model.patch_size / 2**num_pools
            assert bottom == int(bottom) and 4 <= bottom <= 15
            assert not experiment.train.horizontal_flip
            assert left_to_data(experiment) == (FROM_DATA if setting == "unet" else ())
    assert {8, 28, 32, 36, 48, 64, 96, 128, 224, 256} <= set(fits)
    assert not {1, 2, 3, 37, 50, 100, 129} & set(fits)


@pytest.mark.parametrize("num_images", [1, 5, 200, 10_000, 10**7])
def test_batches_and_schedules_fit_any_number_of_images(num_images: int) -> None:
    for resolution in (8, 48, 256):
        experiment = experiment_for(resolution=resolution, channels=3, num_images=num_images)
        assert 8 <= experiment.train.batch_size <= max(8, num_images // 4)
        assert 0 < experiment.optim.first_objective_steps < experiment.train.num_steps
        assert 2e-4 <= experiment.optim.learning_rate <= 2e-3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"resolution": 50}, "prepare the data with --resolution 48 or 52"),
        ({"resolution": 2}, "prepare the data with --resolution 4."),
        ({"channels": 2}, "channels of the images: got 2, expected 1 or 3"),
        ({"num_images": 0}, "number of images: got 0"),
        ({"setting": "t7"}, "setting: got t7, expected one of t6"),
    ],
)
def test_what_no_experiment_can_be_made_for_is_said(changed: dict[str, object], said: str) -> None:
    arguments: dict[str, object] = {"resolution": 48, "channels": 3, "num_images": 100} | changed
    with pytest.raises(UserError, match=re.escape(said)):
        experiment_for(**arguments)  # type: ignore[arg-type]


def test_presets_are_as_before() -> None:
    """The names by which checkpoints are registered."""
    assert preset("digits", "t1k").preset == "digits_t1k"
    assert dataclasses.asdict(preset("digits"))["preset"] == "digits"
