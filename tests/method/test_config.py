"""Presets and their checks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from drl_dist.build import build_ladder, build_network
from drl_dist.common.errors import UserError
from drl_dist.common.images import beside, grid, to_uint8, to_unit_range
from drl_dist.common.nested import differences, flatten, to_dict
from drl_dist.config import rules as checks
from drl_dist.config.from_data import FROM_DATA, left_to_data
from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.rules import check_run
from drl_dist.config.tree import RunConfig
from drl_dist.diffusion import noise
from drl_dist.training.objectives import ScoreMatching

# Table 6 of the paper: resolution, N, beta1, batch size, thousands of training iterations; and Table 5's multiples.
PAPER = {
    "cifar10": (32, 8, 0.9, 256, 240, (1, 2, 2, 2)),
    "celeba64": (64, 6, 0.5, 128, 880, (1, 2, 2, 2, 4)),
    "lsun_church64": (64, 2, 0.9, 128, 960, (1, 2, 2, 2, 4)),
    "lsun_bedroom64": (64, 2, 0.9, 128, 760, (1, 2, 2, 2, 4)),
    "lsun_church128": (128, 2, 0.5, 64, 840, (1, 2, 2, 2, 4, 4)),
    "lsun_bedroom128": (128, 5, 0.5, 64, 580, (1, 2, 2, 2, 4, 4)),
}
# What all of its data sets share, and ours do not: channels, width, learning rate, warm-up, half-life, EMA decay, flip.
SHARED = (3, 128, 1e-4, 1000, None, 0.999, True)
OURS = {
    "digits": (1, 32, 1.5e-3, 100, None, 0.99, False),
    "fashion_mnist": (1, 16, 1.5e-3, 300, 6000, 0.999, True),
}


@pytest.mark.parametrize("name", sorted(PAPER))
def test_table_6(name: str) -> None:
    experiment = preset(name)
    got = (
        experiment.model.resolution,
        experiment.model.num_res_blocks,
        experiment.optim.beta1,
        experiment.train.batch_size,
        experiment.train.num_steps // 1000,
        experiment.model.width_multipliers,
    )
    assert got == PAPER[name]


@pytest.mark.parametrize("name", sorted(PAPER | OURS))
def test_the_columns_that_the_data_sets_of_the_paper_share(name: str) -> None:
    experiment = preset(name)
    optim = experiment.optim
    got = (
        experiment.model.channels,
        experiment.model.width,
        optim.learning_rate,
        optim.warmup_steps,
        optim.half_life_steps,
        optim.ema_decay,
        experiment.train.horizontal_flip,
    )
    assert got == OURS.get(name, SHARED)


def test_every_preset_builds_and_ours_are_there() -> None:
    assert {name: preset(name).preset for name in TABLE_6} == {name: name for name in TABLE_6}
    assert {"digits", "fashion_mnist"} < set(TABLE_6)


def test_the_checks_know_how_many_levels_the_noise_can_tell_apart() -> None:
    assert checks.MAX_LEVELS == noise.MAX_LEVELS


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"preset: got imagenet, expected one of cifar10, .*; choose one of these\.$"):
        preset("imagenet")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("model", "resolution", 30),
        ("model", "channels", 2),
        ("model", "num_res_blocks", 0),
        ("mcmc", "num_chain_steps", -1),
        ("mcmc", "num_chain_steps", 0),  # with a marginal top level
        ("mcmc", "antithetic", True),  # with chains
        ("optim", "objective", "dsm"),  # with a marginal top level
        ("optim", "half_life_steps", 0),
        ("optim", "first_objective", "recovery"),  # which is the second one too
        ("optim", "first_objective_steps", 10),  # of none
        ("optim", "switch_rate_factor", 0.0),
        ("diffusion", "num_levels", 1000),  # of the t6 ladder
        ("diffusion", "ladder", "linear"),  # which does not end in white noise
        ("mcmc", "level_scale_values", (1.0, 2.0)),
        ("mcmc", "bound_fraction", 2.0),
        ("diffusion", "first_noise_to_signal", 0.0),
        ("model", "data_std", float("inf")),
        ("optim", "beta1", 1.0),
        ("optim", "learning_rate", float("nan")),
        ("train", "batch_size", 0),
        ("train", "seed", -1),
        ("diffusion", "last_variance", 1.5),
    ],
)
def test_values_that_cannot_be_are_named(part: str, field: str, value: Any) -> None:
    experiment = preset("cifar10")
    with pytest.raises(UserError, match=f"{part}.{field}|{part}.first_variance and {field}"):
        dataclasses.replace(experiment, **{part: dataclasses.replace(getattr(experiment, part), **{field: value})})


def test_a_first_objective_is_under_the_rules_of_every_objective() -> None:
    experiment = preset("cifar10")
    for name, message in (("dsm", "mcmc.top_level"), ("score_matching", "optim.first_objective_steps")):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, first_objective=name))
    optim = dataclasses.replace(experiment.optim, first_objective="score_matching", first_objective_steps=3)
    assert dataclasses.replace(experiment, optim=optim).optim.objectives == ("score_matching", "recovery")
    assert [optim.objective_at(step) for step in (0, 2, 3)] == ["score_matching", "score_matching", "recovery"]


@pytest.mark.parametrize(
    ("steps", "remedy"),
    [
        (780, "set optim.first_objective_steps to 585 (three quarters of them), or raise train.num_steps above 780."),
        (2, "set optim.first_objective_steps to 1 (three quarters of them), or raise train.num_steps above 780."),
        (1, "raise train.num_steps above 780."),
    ],
)
def test_a_run_that_would_not_come_to_its_second_objective_is_refused(steps: int, remedy: str) -> None:
    experiment = preset("digits", "unet")
    # As a record of a run it can be read, and sampled from.
    short = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, num_steps=steps))
    with pytest.raises(UserError) as caught:
        check_run(RunConfig(experiment=short), complete=False)
    assert str(caught.value) == (
        f"config field optim.first_objective_steps: got 780 of the {steps} step{'s' * (steps > 1)} of train.num_steps, "
        f"expected fewer, since the rest is for optim.objective recovery; {remedy}"
    )
    longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, num_steps=781))
    check_run(RunConfig(experiment=longer), complete=False)


def test_a_geometric_ladder_must_end_in_white_noise() -> None:
    experiment = preset("cifar10")
    diffusion = dataclasses.replace(experiment.diffusion, ladder="geometric")
    dataclasses.replace(experiment, diffusion=diffusion)
    with pytest.raises(UserError, match=r"last_noise_to_signal: got 12, which leaves 8% .* to 19 or more\.$"):
        dataclasses.replace(experiment, diffusion=dataclasses.replace(diffusion, last_noise_to_signal=12))


def test_ends_of_a_geometric_ladder_are_held_to_the_rules_as_far_as_they_are_given() -> None:
    experiment = preset("cifar10", "unet")
    for first, last in ((None, None), (1e-4, None), (None, 140.0)):
        diffusion = dataclasses.replace(experiment.diffusion, first_noise_to_signal=first, last_noise_to_signal=last)
        dataclasses.replace(experiment, diffusion=diffusion)
    for first, last in ((None, 12.0), (None, float("inf")), (0.0, None), (float("nan"), None), (200.0, 140.0)):
        diffusion = dataclasses.replace(experiment.diffusion, first_noise_to_signal=first, last_noise_to_signal=last)
        with pytest.raises(UserError, match="last_noise_to_signal"):
            dataclasses.replace(experiment, diffusion=diffusion)


def test_the_setting_unet_leaves_to_the_data_what_was_not_measured() -> None:
    for name in TABLE_6:
        left = left_to_data(preset(name, "unet"))
        assert left == (() if name in OURS else FROM_DATA)
        assert not left_to_data(preset(name)) and not left_to_data(preset(name, "t1k"))


def test_what_is_left_to_the_data_is_told_where_a_number_is_needed() -> None:
    experiment = preset("cifar10", "unet")
    given = dataclasses.replace(experiment.diffusion, first_noise_to_signal=1e-4, last_noise_to_signal=140.0)
    left = dataclasses.replace(given, first_noise_to_signal=None)
    model = dataclasses.replace(experiment.model, data_std=None)
    experiment, ladder = dataclasses.replace(experiment, model=model, diffusion=left), build_ladder(given)
    for build, name in (
        (lambda: build_network(experiment), "diffusion.first_noise_to_signal"),
        (lambda: build_ladder(dataclasses.replace(given, last_noise_to_signal=None)), "diffusion.last_noise_to_signal"),
        (lambda: build_network(dataclasses.replace(experiment, diffusion=given)), "model.data_std"),
        (lambda: ScoreMatching(experiment, ladder), "model.data_std"),
    ):
        with pytest.raises(
            UserError, match=rf"^config field {name}: got none, which leaves it .*; give {name} a"
        ) as told:
            build()
        assert "\n" not in str(told.value)


def test_level_scales_go_with_the_released_rule_alone() -> None:
    experiment = preset("cifar10")
    mcmc = dataclasses.replace(experiment.mcmc, step_rule="bound", level_scale_values=(1.0,) * 6)
    with pytest.raises(UserError, match=r"expected none, since the level scales of mcmc\.step_rule bound follow from"):
        dataclasses.replace(experiment, mcmc=mcmc)


def test_differences_are_named_with_both_values() -> None:
    old = to_dict(RunConfig(experiment=preset("digits")))
    new = to_dict(RunConfig(experiment=preset("digits"), num_workers=2))
    assert differences(old, old) == []
    assert differences(old, new) == ["num_workers: 1 -> 2"]
    assert flatten(old)["experiment.model.width_multipliers"] == [1, 2]


def test_images_survive_the_unit_range() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    scaled = to_unit_range(images)
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert torch.equal(to_uint8(scaled), images)
    assert to_uint8(torch.tensor([-7.0, 7.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_a_grid_puts_images_in_reading_order() -> None:
    images = torch.stack([torch.full((1, 2, 2), value, dtype=torch.uint8) for value in (10, 20, 30)])
    sheet = grid(images, columns=2, enlarge=2, padding=1)
    assert sheet.shape == (11, 11, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((1, 1), (1, 6), (6, 1), (6, 6), (0, 0))] == [10, 20, 30, 255, 255]
    both = beside(sheet, sheet[:5], gap=3)
    assert both.shape == (11, 25, 3)
    assert np.array_equal(both[:5, 14:], sheet[:5])
