"""How values are spelled on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten, to_dict
from drl_dist.common.validation import whole_number
from drl_dist.jobs.common.options import switches_as_flags
from drl_dist.jobs.train.options import chosen_fields, parse_train


def parsed(*words: str) -> dict[str, Any]:
    run, _ = parse_train("digits", ["--dry-run", *words])
    return flatten(to_dict(run))


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--train.num-steps", "1e5"], "experiment.train.num_steps", 100_000),
        (["--train.num_steps=2.5E3"], "experiment.train.num_steps", 2500),
        (["--train.num-steps", "100000.0"], "experiment.train.num_steps", 100_000),
        (["--train.seed", "1_000"], "experiment.train.seed", 1000),
        (["--train.seed", "9007199254740993"], "experiment.train.seed", 2**53 + 1),
        (["--optim.half-life-steps", "1e3"], "experiment.optim.half_life_steps", 1000),
        (["--optim.half-life-steps", "none"], "experiment.optim.half_life_steps", None),
        (["--optim.half-life-steps=NULL"], "experiment.optim.half_life_steps", None),
        (["--loader.cache-dir", "None"], "loader.cache_dir", None),
        (["--checkpoint.keep", "none"], "checkpoint.keep", None),
        (["--model.width-multipliers", "1", "2e0"], "experiment.model.width_multipliers", [1, 2]),
        (["--train.horizontal-flip", "False"], "experiment.train.horizontal_flip", False),
        (["--train.horizontal-flip", "true"], "experiment.train.horizontal_flip", True),
        (["--train.horizontal_flip=no"], "experiment.train.horizontal_flip", False),
        (["--train.horizontal-flip"], "experiment.train.horizontal_flip", True),
        (["--train.no-horizontal-flip"], "experiment.train.horizontal_flip", False),
        (["--model.spectral-norm", "off", "--use-gpu"], "experiment.model.spectral_norm", False),
        (["--use-gpu", "0"], "use_gpu", False),
        (["--use-gpu=1"], "use_gpu", True),
        (["--num_workers", "2:3"], "min_workers", 2),
    ],
)
def test_the_usual_spellings_are_understood(words: list[str], field: str, value: object) -> None:
    found = parsed(*words)[field]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--train.num-steps", "1.5"], "option --train.num-steps: got 1.5, which is not a whole number, expected INT"),
        (["--train.num-steps", "1e999999999"], "got 1e999999999, which is not a whole number"),
        (["--train.num-steps", "1__0"], "got 1__0, which is not a whole number"),
        (["--train.num-steps", ""], "got '', which is not a whole number"),
        (
            ["--optim.learning-rate", "1,5"],
            "option --optim.learning-rate: got 1,5, which is not a number, expected FLOAT",
        ),
        (["--train.num-steps", "inf"], "got inf, which is not a whole number"),
        (["--optim.max-grad-norm", "inf"], r"option --optim.max-grad-norm: got inf, expected none\|FLOAT"),
        (
            ["--loader.cache-gib", "nan"],
            "option --loader.cache-gib: got nan, which is not a finite number, expected FLOAT",
        ),
        (["--mcmc.level-scale-values", "1", "1e400"], "option --mcmc.level-scale-values: got 1 1e400, expected"),
        (["--train.num-steps", "none"], "option --train.num-steps: got none, which is not a whole number"),
        (["--train.horizontal-flip", "maybe"], "option: got maybe"),
    ],
)
def test_what_is_no_value_is_told_in_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        parsed(*words)
    assert "\n" not in str(caught.value)


def test_what_a_dry_run_prints_is_json() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    run, _ = parse_train("digits", ["--dry-run"])
    json.loads(json.dumps(to_dict(run), allow_nan=False), parse_constant=refuse)


def test_a_word_that_belongs_to_nothing_stays_where_it_is() -> None:
    switches = ["--train.flip"]
    assert switches_as_flags(["--name", "false", "--train.flip", "--x", "no"], switches) == [
        "--name", "false", "--train.flip", "--x", "no",
    ]  # fmt: skip
    assert switches_as_flags(["--train.flip", "FALSE", "no"], switches) == ["--train.no-flip", "no"]


def test_whole_numbers_beyond_thirty_digits_are_none() -> None:
    assert whole_number("1e29") == 10**29
    with pytest.raises(ValueError, match="not a whole number"):
        whole_number("1e30")


@pytest.mark.parametrize("word", ["--mcmc.normal-spread", "--mcmc.normal_spread", "--mcmc.normal-spread=posterior"])
def test_a_newer_field_that_a_command_gives_is_known(word: str) -> None:
    assert chosen_fields(["--data", "/data", word]) == ("mcmc.normal_spread",)
    assert chosen_fields(["--data", word.removeprefix("--"), "--mcmc.antithetic"]) == ()
