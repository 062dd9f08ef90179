"""Step-size adaptation where the right step sizes are known, and their file."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.diffusion.ladder import composed_ladder
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import Gaussian
from drl_dist.jobs.common.step_sizes import STEP_SIZES_NAME, read_step_sizes, write_step_sizes
from drl_dist.mcmc.adaptation import AdaptingChains, StepSizes, adapt_step_size
from drl_dist.mcmc.kernel import KeyedChainNoise
from drl_dist.mcmc.kernels import kernel_named
from drl_dist.mcmc.langevin import UnadjustedLangevin
from drl_dist.mcmc.settings import AdaptationConfig, KernelName
from tests.mcmc.distributions import expected_rate, run

DIMS = 20
CONFIG = AdaptationConfig(num_chains=60, num_steps=20)


def chains(density: LogDensityAndGrad, y: Tensor, seed: int, kernel: KernelName = "hmc") -> list[AdaptingChains]:
    noise, ids = PhiloxNoise(seed), torch.arange(len(y))
    return [
        AdaptingChains(
            kernel_named(kernel, max_tree_depth=5),
            density,
            part,
            KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, own, 0, tuple(y.shape[1:]), torch.float64),
        )
        for part, own in zip(y.split(25), ids.split(25), strict=True)
    ]


def gaussian(std: float, seed: int) -> tuple[LogDensityAndGrad, Tensor]:
    target = Gaussian(torch.tensor(0.2, dtype=torch.float64), std)
    normals = PhiloxNoise(seed).normal(Purpose.BASE, torch.arange(CONFIG.num_chains), 0, (0,), (DIMS,))[0]
    return target.log_density_and_grad, 0.2 + std * normals.double()


@pytest.mark.parametrize("level", range(6))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gaussians_of_the_scales_of_t6_levels_are_adapted(level: int, seed: int) -> None:
    # Scales of the conditional densities, from .01 to 1, each from a start that is ten times wrong.
    ladder = composed_ladder()
    data = Gaussian(torch.tensor(0.0), 0.4)
    _, std = data.level(ladder, level).posterior(torch.zeros(1), float(ladder.std[level + 1]))
    density, y = gaussian(std, seed)
    for wrong in (0.1, 10.0):
        step_size, rate = adapt_step_size(chains(density, y, seed), wrong * std, CONFIG)
        assert CONFIG.contains(rate)
        # Whatever the scale, the rate is that of the unit Gaussian; .06 is four standard errors of 60 short chains.
        assert rate == pytest.approx(expected_rate(step_size / std, DIMS), abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["mala", "nuts"])
def test_other_kernels_are_adapted_too(kernel: KernelName) -> None:
    density, y = gaussian(0.3, 0)
    step_size, rate = adapt_step_size(chains(density, y, 0, kernel), 0.01, CONFIG)
    assert CONFIG.contains(rate)
    _, infos, _ = run(
        kernel_named(kernel, max_tree_depth=5)(density, torch.full((60,), step_size, dtype=torch.float64)), y, 99, 20
    )
    again = float(torch.stack([info.acceptance_probability for info in infos]).mean())
    assert again == pytest.approx(rate, abs=0.06)


def test_the_search_tries_few_steps_first_and_ends_with_all_of_them() -> None:
    density, y = gaussian(1.0, 0)
    tried: list[tuple[float, float]] = []
    parts = chains(density, y, 0)
    found = adapt_step_size(parts, 0.01, CONFIG, observe=lambda size, rate: tried.append((size, rate)))
    assert tried[-1] == found
    assert tried[-1][0] == tried[-2][0]
    assert all(rate > 0.9 for _, rate in tried[:-3])
    assert [part.next_step for part in parts] == [2 * (len(tried) - 1) + 20] * 3
    assert parts[0].y.shape == (25, DIMS)


@pytest.mark.parametrize(
    ("density", "rate"),
    [
        (lambda y: (torch.zeros(len(y), dtype=y.dtype), torch.zeros_like(y)), "1"),
        (lambda y: (torch.full((len(y),), torch.nan, dtype=y.dtype), torch.zeros_like(y)), "0"),
    ],
)
def test_a_density_without_a_right_step_size_is_refused(density: LogDensityAndGrad, rate: str) -> None:
    config = AdaptationConfig(num_chains=60, num_steps=5, max_rounds=8)
    with pytest.raises(UserError, match=f"step size of level 3: got an acceptance rate of {rate} near .* after 8 corr"):
        adapt_step_size(chains(density, gaussian(1.0, 0)[1], 0), 0.1, config, what="step size of level 3")


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_a_log_density_too_large_for_its_dtype_is_refused(offset: float) -> None:
    # What a network says at the lowest of six levels: 10**8 nats and more, of which float32 keeps eight digits.
    target, y = gaussian(0.1, 0)

    def density(at: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = target(at.double())
        return (value - offset).to(at.dtype), gradient.to(at.dtype)

    def parts(dtype: torch.dtype) -> list[AdaptingChains]:
        made = chains(density, y.to(dtype), 0)
        for part in made:
            part.noise = dataclasses.replace(part.noise, dtype=dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return made

    right = adapt_step_size(chains(target, y, 0), 0.1, CONFIG)
    assert adapt_step_size(parts(torch.float64), 0.1, CONFIG)[0] == pytest.approx(right[0], rel=0.01)
    if offset:
        with pytest.raises(UserError, match=r"got log-densities that float32 rounds by 1.2e.02 nats"):
            adapt_step_size(parts(torch.float32), 0.1, CONFIG)
    else:
        assert adapt_step_size(parts(torch.float32), 0.1, CONFIG)[0] == pytest.approx(right[0], rel=0.01)


def test_a_kernel_that_never_rejects_cannot_be_adapted() -> None:
    density, y = gaussian(1.0, 0)
    [part, *_] = chains(density, y, 0)
    with pytest.raises(ValueError, match="never rejects"):
        dataclasses.replace(part, kernel_at=UnadjustedLangevin).run(0.1, 1)


@pytest.mark.parametrize(
    "changed", [{"num_chains": 0}, {"num_steps": 0}, {"lowest_rate": 0.9}, {"highest_rate": 1.0}, {"max_rounds": 0}]
)
def test_impossible_settings_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(UserError, match="adaptation field"):
        AdaptationConfig(**changed)  # pyright: ignore[reportArgumentType]


SCHEDULE = StepSizes(
    step_size=(0.1, 1 / 3, 1e-5),
    acceptance_rate=(0.7, 0.61, 0.89),
    kernel="hmc",
    num_leapfrog_steps=2,
    num_chains=1000,
    num_steps=100,
    seed=3,
)
SHA = "ab" * 32


def test_a_schedule_survives_its_file(tmp_path: Path) -> None:
    write_step_sizes(str(tmp_path / "new"), SCHEDULE, SHA)
    assert read_step_sizes(f"file://{tmp_path}/new", SHA, 3) == SCHEDULE


def test_a_schedule_of_another_model_is_refused(tmp_path: Path) -> None:
    write_step_sizes(str(tmp_path), SCHEDULE, SHA)
    with pytest.raises(UserError, match=r"got those of a model with weights abababababab, expected .* cdcdcdcdcdcd"):
        read_step_sizes(str(tmp_path), "cd" * 32, 3)
    with pytest.raises(UserError, match="got 3 levels, expected 6 levels"):
        read_step_sizes(str(tmp_path), SHA, 6)
    with pytest.raises(UserError, match="got no such file"):
        read_step_sizes(str(tmp_path / "none"), SHA, 3)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schedule", "step_size"), [0.1, -0.1, 0.1], "a step size is not a positive number"),
        (("schedule", "step_size"), [0.1, 0.1], "2 step sizes and 3 acceptance rates"),
        (("schedule", "step_size"), [0.1, "0.1", 0.1], "valid number"),
        (("schedule", "acceptance_rate"), [0.1, 1.1, 0.1], r"not in \[0, 1\]"),
        (("schedule", "kernel"), "gibbs", "'hmc', 'mala' or 'nuts'"),
        (("schedule", "num_chains"), 0, "no chains"),
        (("schedule", "num_steps"), 1.5, "valid integer"),
        (("schedule", "extra"), 1, "Unexpected keyword argument"),
        (("format",), "other", "'drl_dist.step_sizes'"),
        (("version",), 2, "should be 1"),
        (("ema_sha256",), None, "valid string"),
    ],
)
def test_a_damaged_schedule_is_refused(tmp_path: Path, path: tuple[str, ...], value: object, message: str) -> None:
    write_step_sizes(str(tmp_path), SCHEDULE, SHA)
    file = tmp_path / STEP_SIZES_NAME
    content = json.loads(file.read_text())
    inner = content
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_step_sizes(str(tmp_path), SHA, 3)


def test_text_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / STEP_SIZES_NAME).write_text("{")
    with pytest.raises(UserError, match=r"step sizes .*step_sizes\.json"):
        read_step_sizes(str(tmp_path), SHA, 3)


def test_a_schedule_of_no_levels_is_none() -> None:
    with pytest.raises(ValueError, match="0 step sizes"):
        dataclasses.replace(SCHEDULE, step_size=(), acceptance_rate=())
    with pytest.raises(ValueError, match="not a positive number"):
        dataclasses.replace(SCHEDULE, step_size=(0.1, math.inf, 0.1))
