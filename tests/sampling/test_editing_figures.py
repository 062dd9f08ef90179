"""The biases that docs/editing.md gives, from exact energies."""

from __future__ import annotations

import inspect

import pytest

from benchmarks.editing import denoising, experiments, inpainting
from drl_dist.build import build_posterior_sampler
from drl_dist.config.presets import preset
from drl_dist.jobs.edit.options import InpaintOptions

GEOMETRIC = "geometric, T = 10, K = 30"


def test_the_job_and_the_library_have_the_same_rounds() -> None:
    default = inspect.signature(build_posterior_sampler).parameters["num_rounds"].default
    assert default == InpaintOptions().num_rounds == build_posterior_sampler(preset("digits")).num_rounds == 4


def test_rounds_take_the_bias_of_inpainting_away() -> None:
    experiment = experiments()[GEOMETRIC]
    assert inpainting(experiment, 1)[0] == pytest.approx([0.811, 0.739], abs=0.002)
    means, stds = inpainting(experiment, 4)
    assert means == pytest.approx([0.967, 0.949], abs=0.002)
    assert stds == pytest.approx([1.091, 1.084], abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_rounds", "means", "stds"), [(1, [0.720, 0.624], [1.249, 1.187]), (4, [0.939, 0.907], [1.037, 1.034])]
)
def test_the_same_at_t_1000(num_rounds: int, means: list[float], stds: list[float]) -> None:
    found = inpainting(experiments()["t1k"], num_rounds)
    assert found[0] == pytest.approx(means, abs=0.002)
    assert found[1] == pytest.approx(stds, abs=0.002)


def test_released_steps_are_too_few_to_denoise_and_those_of_the_bound_are_enough() -> None:
    assert denoising(experiments()["t6, K = 30"], 60 / 127.5)[0.25][0] == pytest.approx(1.833, abs=0.002)
    for noise in (30, 60, 120):
        for slope, std in denoising(experiments()[GEOMETRIC], noise / 127.5).values():
            assert slope == pytest.approx(1, abs=0.02)
            assert std == pytest.approx(1, abs=0.07)


def test_the_setting_unet_edits_without_much_bias_because_of_its_start() -> None:
    short, without = "setting unet, K = 2", "the same, chains start at x_noisy"
    for noise in (30, 60, 120):
        for slope, _ in denoising(experiments()[short], noise / 127.5).values():
            assert slope == pytest.approx(1, abs=0.02)
    assert denoising(experiments()[without], 60 / 127.5)[0.01][0] > 2
    means, stds = inpainting(experiments()[short], 4)
    assert means == pytest.approx([0.939, 0.909], abs=0.002)
    assert stds == pytest.approx([0.998, 0.987], abs=0.002)
    assert min(inpainting(experiments()[without], 4)[1]) > 1.4
