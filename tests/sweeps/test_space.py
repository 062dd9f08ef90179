"""Spaces: every value against the config's types and rules, c_t in its three forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.errors import UserError
from drl_dist.jobs.sweep.options import SweepPlan
from drl_dist.jobs.sweep.proposals import make_proposer
from drl_dist.jobs.sweep.space import Choice, Range, apply, default_space, parse_space
from tests.sweeps.makers import plan


@pytest.fixture
def base(tmp_path: Path) -> SweepPlan:
    return plan(tmp_path)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"optim.beta1": ["high"]}, "field optim.beta1: got 'high', expected a valid number"),
        ({"model.num_res_blocks": [1, 2.5]}, "field model.num_res_blocks: got 2.5, expected"),
        ({"model.num_res_blocks": {"uniform": [1, 3]}}, "field model.num_res_blocks: got 2.41"),
        ({"optim.beta1": [0.5, 1.0]}, r"field optim.beta1: got 1.0, expected a number in \[0, 1\)"),
        ({"optim.beta1": {"uniform": [0.5, 1.5]}}, "field optim.beta1: got 1.5"),
        ({"model.activation": ["silu", "tanh"]}, "field model.activation: got 'tanh'"),
        (
            {"optim.beta_1": [0.5]},
            "got the field optim.beta_1, expected a dotted field of the config; write optim.beta1",
        ),
        ({"train.num_steps": [100]}, "got the field train.num_steps, expected a field that is not the sweep's own"),
        ({"tracking.score_num_images": [100]}, "got the field tracking.score_num_images"),
        ({"optim.beta1": 0.5}, "field optim.beta1: got 0.5, expected a list of values"),
        ({"optim.beta1": []}, "expected a list of values"),
        ({"optim.beta1": [0.5, 0.5]}, "expected every value once"),
        ({"optim.learning_rate": {"loguniform": [0, 1e-3]}}, "expected a list of values"),
        ({"optim.learning_rate": {"normal": [0, 1]}}, "expected a list of values"),
        ({}, "expected an object of dotted field names"),
        ({"mcmc.level_scale": [0.0]}, "field mcmc.level_scale_multiplier: got 0.0, expected a positive number"),
        ({"mcmc.level_scale": [[1, 2]]}, "expected none, or 6 positive numbers"),
        ({"mcmc.level_scale": [{"factor": 1}]}, "field mcmc.level_scale: got .*factor.*, expected a number"),
        ({"mcmc.level_scale": ["1"]}, "field mcmc.level_scale: got 1, expected a number"),
        ({"mcmc.level_scale": [1], "mcmc.level_scale_power": [0]}, "expected c_t given once"),
    ],
)
def test_what_no_run_can_have_is_refused(space: dict[str, Any], sentence: str, base: SweepPlan) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_space(space, base.base)


def c_t(value: object, base: SweepPlan) -> torch.Tensor:
    """c_t of every level, from the step sizes of the run that has the value."""
    experiment = apply({"mcmc.level_scale": value}, base.base).experiment
    ladder = build_ladder(experiment.diffusion)
    return build_levels(experiment, ladder).step_size / (ladder.std[1:] * experiment.mcmc.step_scale_squared**0.5)


def test_c_t_is_a_multiplier_a_power_or_one_value_per_level(base: SweepPlan) -> None:
    ladder = build_ladder(base.base.experiment.diffusion)
    ratio = ladder.cumulative_std[:-1] / ladder.cumulative_std[0]
    torch.testing.assert_close(c_t(0.25, base), 0.25 * ratio**0.5)
    torch.testing.assert_close(c_t({"power": 0.0}, base), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(c_t({"power": 1.0, "multiplier": 3}, base), 3 * ratio)
    torch.testing.assert_close(c_t([1, 2, 3, 4, 5, 6.5], base), torch.tensor([1, 2, 3, 4, 5, 6.5], dtype=torch.float64))


def test_whole_numbers_in_any_spelling_of_json(base: SweepPlan) -> None:
    given = {
        "model.num_res_blocks": [1.0, 2, 1e1],
        "model.width_multipliers": [[1.0, 2], [1, 1e0]],
        "optim.warmup_steps": {"integer": [1e1, 2e1]},
        "optim.beta1": [0.0, 0.5],
    }
    space = parse_space(given, base.base)
    assert repr(space.dimensions["model.num_res_blocks"]) == "Choice(values=(1, 2, 10))"
    assert repr(space.dimensions["model.width_multipliers"]) == "Choice(values=([1, 2], [1, 1]))"
    assert repr(space.dimensions["optim.warmup_steps"]) == "Range(kind='integer', low=10, high=20)"
    assert repr(space.dimensions["optim.beta1"]) == "Choice(values=(0.0, 0.5))"
    for wrong in ({"model.num_res_blocks": [1, 1.0]}, {"model.num_res_blocks": [True]}):
        with pytest.raises(UserError, match=r"space, field model\.num_res_blocks"):
            parse_space(wrong, base.base)


def test_any_field_by_its_dotted_name(base: SweepPlan) -> None:
    run = apply(
        {"optim.half_life_steps": None, "model.width_multipliers": [1, 1], "engine.precision": "bfloat16"}, base.base
    )
    assert run.experiment.optim.half_life_steps is None
    assert run.experiment.model.width_multipliers == (1, 1)
    assert run.engine.precision == "bfloat16"
    assert run.experiment.model.width == base.base.experiment.model.width


def test_one_number_per_level_is_varied_as_a_list_of_lists_and_alone(base: SweepPlan) -> None:
    lists = [[3, 3, 3, 3, 3, 3.0], [6, 5, 4, 3, 2, 1]]
    space = parse_space({"mcmc.level_chain_steps": lists}, base.base)
    points = [make_proposer("grid", space, 0).propose(number) for number in range(2)]
    assert [apply(point, base.base).experiment.mcmc.level_chain_steps for point in points] == [
        (3, 3, 3, 3, 3, 3),
        (6, 5, 4, 3, 2, 1),
    ]
    with pytest.raises(UserError, match=r"field mcmc.level_chain_steps: got \[3\], expected none, or 6 numbers"):
        parse_space({"mcmc.level_chain_steps": [[3]]}, base.base)
    both = {"mcmc.level_chain_steps": lists, "mcmc.num_chain_steps": [1, 2]}
    given = apply({"mcmc.level_chain_steps": lists[1]}, base.base)
    for space, run in ((both, base.base), ({"mcmc.num_chain_steps": [1, 2]}, given)):
        with pytest.raises(UserError, match=r"got mcmc.num_chain_steps, whose place mcmc.level_chain_steps takes"):
            parse_space(space, run)


@pytest.mark.parametrize(
    ("preset", "step_sizes"),
    [("digits", "mcmc.bound_fraction"), ("lsun_church128", "mcmc.level_scale")],
)
def test_the_default_space_is_n_beta1_and_c_t(preset: str, step_sizes: str, tmp_path: Path) -> None:
    from drl_dist.jobs.sweep.options import parse_sweep

    words = ["--preset", preset, "--data", "/data", "--storage", str(tmp_path), "--sweep-name", "s"]
    made, _ = parse_sweep(words)
    assert list(made.space.dimensions) == ["model.num_res_blocks", "optim.beta1", step_sizes]
    assert made.space == parse_space(default_space(made.base), made.base)
    blocks = made.space.dimensions["model.num_res_blocks"]
    assert isinstance(blocks, Choice) and made.base.experiment.model.num_res_blocks in blocks.values
    assert made.num_trials == 16
    if preset == "digits":
        # Around c of the preset, whose kernel has no use for shorter steps.
        assert isinstance(made.space.dimensions[step_sizes], Choice)
        assert 1.4 in made.space.dimensions[step_sizes].values


def test_a_fraction_that_every_level_has_its_own_of_is_not_in_the_default_space(tmp_path: Path) -> None:
    from drl_dist.jobs.sweep.options import parse_sweep

    words = ["--preset", "digits", "--data", "/data", "--storage", str(tmp_path), "--sweep-name", "s"]
    made, _ = parse_sweep([*words, "--mcmc.level-bound-fractions", *["0.9"] * 10])
    assert list(made.space.dimensions) == ["model.num_res_blocks", "optim.beta1"]
    with pytest.raises(UserError, match=r"got mcmc.bound_fraction, whose place mcmc.level_bound_fractions takes"):
        parse_space({"mcmc.bound_fraction": [0.6, 0.9]}, made.base)


def test_a_grid_is_every_combination_once(base: SweepPlan) -> None:
    proposer = make_proposer("grid", base.space, 0)
    points = [proposer.propose(number) for number in range(6)]
    assert points[0] == {"model.num_res_blocks": 1, "mcmc.level_scale": 1.0}
    assert points[1] == {"model.num_res_blocks": 1, "mcmc.level_scale": {"power": 0.0}}
    assert len({str(point) for point in points}) == 6
    with pytest.raises(UserError, match=r"field optim.beta1: got a range, uniform, expected a list of values"):
        make_proposer("grid", parse_space({"optim.beta1": {"uniform": [0.1, 0.9]}}, base.base), 0)


RANGES = {
    "optim.beta1": {"uniform": [0.2, 0.9]},
    "optim.learning_rate": {"loguniform": [1e-5, 1e-1]},
    "mcmc.num_chain_steps": {"integer": [3, 6]},
    "mcmc.level_scale": [1.0, {"power": 0.0}],
}


def test_random_draws_depend_on_seed_and_number_alone(base: SweepPlan) -> None:
    space = parse_space(RANGES, base.base)
    points = [make_proposer("random", space, 3).propose(number) for number in range(300)]
    again = make_proposer("random", space, 3)
    assert [again.propose(number) for number in reversed(range(300))] == points[::-1]
    assert make_proposer("random", space, 4).propose(0) != points[0]
    for point in points:
        apply(point, base.base)
    assert {point["mcmc.num_chain_steps"] for point in points} == {3, 4, 5, 6}
    assert {str(point["mcmc.level_scale"]) for point in points} == {"1.0", "{'power': 0.0}"}
    # Half of a log-uniform law on 1e-5 to 1e-1 lies below 1e-3; of a uniform one, a hundredth would.
    below = sum(point["optim.learning_rate"] < 1e-3 for point in points)
    assert 150 - 4 * 8.7 < below < 150 + 4 * 8.7
    middle = sum(point["optim.beta1"] < 0.55 for point in points)
    assert 150 - 4 * 8.7 < middle < 150 + 4 * 8.7


def test_optuna_learns_from_scores_and_goes_on_after_a_start(base: SweepPlan) -> None:
    space = parse_space(RANGES, base.base)
    assert isinstance(space.dimensions["optim.learning_rate"], Range)
    first = make_proposer("optuna", space, 0)
    told: dict[int, tuple[dict[str, Any], float]] = {}
    for number in range(30):
        values = first.propose(number)
        apply(values, base.base)
        score = abs(values["optim.beta1"] - 0.3) + (values["mcmc.level_scale"] != 1.0)
        first.tell(number, score)
        told[number] = (values, score)
    resumed = make_proposer("optuna", space, 0)
    for number, (values, score) in told.items():
        resumed.adopt(number, values)
        resumed.tell(number, score)
    resumed.adopt(30, told[0][0])  # one that still runs
    ahead = [resumed.propose(number) for number in range(31, 39)]
    # By chance half of them would have the good c_t and a third a beta1 as near.
    assert sum(values["mcmc.level_scale"] == 1.0 for values in ahead) >= 6
    assert sum(abs(values["optim.beta1"] - 0.3) < 0.12 for values in ahead) >= 5
    # New ones, not those of the first start again.
    assert not [values for values in ahead if values in [one for one, _ in told.values()]]
