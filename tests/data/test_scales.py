"""Numbers that a config leaves to the data: what they are, and that every driver puts them into its records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.checkpoints.run_record import write_record
from drl_dist.common.errors import UserError
from drl_dist.config.from_data import FROM_DATA, left_to_data
from drl_dist.config.presets import preset
from drl_dist.config.tree import Experiment, RunConfig
from drl_dist.data.index import write_index
from drl_dist.data.pixels.scales import first_noise_to_signal, last_noise_to_signal, scaled_to
from drl_dist.data.pixels.statistics import PixelStatistics
from drl_dist.jobs.sweep.driver import scaled_plan
from drl_dist.jobs.sweep.options import SweepPlan, parse_sweep
from drl_dist.jobs.sweep.record import SweepFolder
from drl_dist.jobs.sweep.trial import prepare_trial
from drl_dist.jobs.train.driver import prepare_run
from drl_dist.jobs.train.options import parse_train, parse_train_options
from drl_dist.jobs.train.single_device import train_on_one_device
from tests.data.sets import pixels_of, write_set

NONE = ("--model.data-std", "none", "--diffusion.first-noise-to-signal", "none")
NONE += ("--diffusion.last-noise-to-signal", "None")
TINY = ("--setting", "unet", "--model.width", "4", "--model.time-hidden-dim", "8", "--train.batch-size", "4")
TINY += ("--train.num-steps", "2", "--optim.first-objective-steps", "1", "--tracking.num-samples", "1")
TINY += ("--engine.threads-per-worker", "1")
_UNET = preset("cifar10", "unet")
LEFT = dataclasses.replace(
    _UNET,
    model=dataclasses.replace(_UNET.model, data_std=None),
    diffusion=dataclasses.replace(_UNET.diffusion, first_noise_to_signal=None, last_noise_to_signal=None),
)
"""An experiment that leaves all numbers to the data that can be."""
STATISTICS = PixelStatistics(mean=-0.3, std=0.4, largest_variance=60.0)


def scales(experiment: Experiment) -> tuple[float | None, float | None, float | None]:
    diffusion = experiment.diffusion
    return experiment.model.data_std, diffusion.first_noise_to_signal, diffusion.last_noise_to_signal


def expected() -> tuple[float, float, float]:
    """Of the images of `write_set`, which are noise, by numpy."""
    x = np.stack([pixels_of(number) for number in range(53)]).reshape(53, -1) / 127.5 - 1
    square = np.square(x).mean()
    largest = max(64 * np.square(x.mean(1)).mean(), np.square(x.mean(0)).sum())
    data_std, first, last = (float(f"{value:.4g}") for value in (square**0.5, 4e-4 * square, max(5 * largest, 20)))
    return data_std, first, last


def test_the_numbers_of_a_data_set() -> None:
    found = scaled_to(LEFT, lambda: STATISTICS, "/data")
    # The standard deviation about zero, its square in 4e-4, and five times the largest moment.
    assert scales(found) == (0.5, 1e-4, 300.0)
    left = {section: getattr(found, section) for section in ("mcmc", "optim", "train")}
    assert dataclasses.replace(LEFT, model=found.model, diffusion=found.diffusion, **left) == found
    # Four digits, so that they can be typed.
    third = dataclasses.replace(STATISTICS, mean=0.0, std=1 / 3, largest_variance=100 / 3)
    assert scales(scaled_to(LEFT, lambda: third, "/data")) == (0.3333, 6.151e-05, 166.7)


def test_numbers_that_are_given_stay_and_data_are_not_asked_for_nothing() -> None:
    given = dataclasses.replace(LEFT, model=dataclasses.replace(LEFT.model, data_std=1.0))
    assert scales(scaled_to(given, lambda: STATISTICS, "/data")) == (1.0, 4e-4, 300.0)
    for name in ("cifar10", "digits"):
        assert scaled_to(preset(name), lambda: pytest.fail("nothing is needed"), "/data") == preset(name)
    # What was measured for a preset is the same as before.
    assert scales(preset("digits", "unet")) == (0.75, 1e-4, 140.0)
    assert scales(Experiment(preset="")) == (0.5, 1e-4, 140.0)


def test_the_first_level_has_a_grey_level_of_noise_or_more() -> None:
    assert first_noise_to_signal(0.5) == pytest.approx(1e-4)
    assert first_noise_to_signal(0.05) == (2 / 255) ** 2
    assert first_noise_to_signal(1.0) == pytest.approx(4e-4)


@pytest.mark.parametrize(("largest", "ratio"), [(27.1, 135.5), (0.0, 20.0), (3.9, 20.0), (1e6, 1e5)])
def test_the_last_level_drowns_the_largest_direction(largest: float, ratio: float) -> None:
    assert last_noise_to_signal(largest) == pytest.approx(ratio)
    experiment = preset("digits", "unet")
    # No rule on ladders refuses it.
    diffusion = dataclasses.replace(experiment.diffusion, last_noise_to_signal=last_noise_to_signal(largest))
    dataclasses.replace(experiment, diffusion=diffusion)


def test_what_is_left_in_the_last_level_costs_little() -> None:
    for largest in (30.0, 500.0, 4000.0):
        kept = 1 / (1 + last_noise_to_signal(largest))
        # Largest divergence from white noise of data with this second moment along a direction, given the data.
        assert 0.5 * (kept * largest - kept - np.log1p(-kept)) < 0.101


def test_data_that_give_no_numbers_are_told_in_one_sentence() -> None:
    for statistics, message in (
        (
            None,
            r"^data /data: got an index without statistics of the pixels, from which model\.data_std, diff.*"
            r"; run its datasets_prep command again, which adds them, or give --model\.data-std NUMBER "
            r"--diffusion\.first-noise-to-signal NUMBER --diffusion\.last-noise-to-signal NUMBER\.$",
        ),
        (PixelStatistics(mean=1.0, std=0.0, largest_variance=3072.0), r"^data /data: got images whose pixels are all"),
    ):
        with pytest.raises(UserError, match=message) as told:
            scaled_to(LEFT, lambda statistics=statistics: statistics, "/data")
        assert "\n" not in str(told.value)
    high = dataclasses.replace(LEFT.diffusion, first_noise_to_signal=400.0)
    with pytest.raises(UserError, match=r"last_noise_to_signal: got \(400\.0, 300\.0\), expected 0 < first < last"):
        scaled_to(dataclasses.replace(LEFT, diffusion=high), lambda: STATISTICS, "/data")


# From here on: every way from a command to a record.


def words(data: Path, storage: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--storage", str(storage), "--run-name", "a", *TINY, *more]


def with_ray(data: Path, storage: Path, *more: str) -> RunConfig:
    return parse_train("digits", words(data, storage, *more))[0]


def test_training_with_ray_begins_with_numbers(tmp_path: Path) -> None:
    index = write_set(str(tmp_path / "data"), measured=True)
    run = with_ray(tmp_path / "data", tmp_path / "runs", *NONE)
    assert left_to_data(run.experiment) == FROM_DATA
    prepared = prepare_run(run)
    assert scales(prepared.run.experiment) == expected()
    # A record of these numbers is one of the same command.
    write_record(run.url, prepared.run.experiment, index.fingerprint)
    assert prepare_run(run).run == prepared.run
    with pytest.raises(UserError, match=r"changed fields .*; model\.data_std: 0\.\d+ -> 0\.75, expected"):
        prepare_run(with_ray(tmp_path / "data", tmp_path / "runs", *NONE, "--model.data-std", ".75"))
    write_index(dataclasses.replace(index, statistics=None))
    with pytest.raises(UserError, match="an index without statistics of the pixels"):
        prepare_run(run)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shards", "array"])
def test_training_without_ray_records_numbers_and_resumes(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / ("data" if kind == "shards" else "images.npy")
    if kind == "shards":
        write_set(str(data), measured=True)
    else:
        np.save(data, np.stack([pixels_of(number) for number in range(53)]))

    def run(*more: str) -> RunConfig:
        return parse_train_options("digits", ["--without-ray", *words(data, tmp_path / "runs", *NONE, *more)])[0]

    assert train_on_one_device(run()) == 0
    stored = json.loads((tmp_path / "runs" / "a" / "experiment.json").read_text())["experiment"]
    ends = (stored["diffusion"]["first_noise_to_signal"], stored["diffusion"]["last_noise_to_signal"])
    assert (stored["model"]["data_std"], *ends) == expected()
    checkpoint = read_checkpoint(tmp_path / "runs" / "a" / "checkpoint_000000002")
    assert scales(checkpoint.experiment) == expected()
    assert train_on_one_device(run()) == 0
    assert "run a has made its 2 steps" in capsys.readouterr().out
    assert train_on_one_device(run("--train.num-steps", "3")) == 0
    assert "resuming after step 2" in capsys.readouterr().out


def test_a_dry_run_says_what_the_data_decide(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = "null here, and taken from the statistics of the data: " + ", ".join(FROM_DATA) + "\n"
    given = ["--preset", "cifar10", "--setting", "unet", "--data", "/data", "--storage", "/runs", "--sweep-name", "s"]
    for more, expected in (("--dry-run", told), ("--no-dry-run", "")):
        plan, _ = parse_sweep([*given, *NONE, more])
        assert plan.as_json()["base"]["experiment"]["model"]["data_std"] is None
        assert capsys.readouterr().err == expected


def swept(data: Path, storage: Path, space: dict[str, Any]) -> SweepPlan:
    given = ["--preset", "digits", "--data", str(data), "--storage", str(storage), "--sweep-name", "s", *TINY, *NONE]
    given += ["--optim.warmup-steps", "0", "--tracking.score-features", "pixels", "--tracking.score-num-images", "10"]
    return parse_sweep([*given, "--space", json.dumps(space)])[0]


def test_a_sweep_and_its_trials_have_numbers(tmp_path: Path) -> None:
    index = write_set(str(tmp_path / "data"), measured=True)
    plan = swept(tmp_path / "data", tmp_path, {"model.data_std": [0.4, None], "optim.beta1": [0.5, 0.9]})
    assert left_to_data(plan.base.experiment) == FROM_DATA
    plan = scaled_plan(plan, index)
    folder = SweepFolder(plan, index.fingerprint)
    folder.check()
    folder.begin()
    stored = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert stored["experiment"]["model"]["data_std"] == expected()[0]
    SweepFolder(plan, index.fingerprint).check()
    for number, data_std in enumerate((0.4, None)):
        folder.propose(number, {"model.data_std": data_std})
        run = prepare_trial(folder, number)[0].run
        assert scales(run.experiment) == (data_std or expected()[0], *expected()[1:])


def test_a_space_that_the_numbers_of_the_data_do_not_go_with_is_told_before_any_trial(tmp_path: Path) -> None:
    index = write_set(str(tmp_path / "data"), measured=True)
    plan = swept(tmp_path / "data", tmp_path, {"diffusion.first_noise_to_signal": [1e-4, 2e5]})
    with pytest.raises(UserError, match=r"^space, .*last_noise_to_signal: got .*, expected 0 < first < last"):
        scaled_plan(plan, index)
