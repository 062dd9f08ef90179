"""The long-run job from a checkpoint to pictures, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drl_dist.build import build_ladder, build_levels, build_network
from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH, to_uint8
from drl_dist.config.tree import EngineConfig
from drl_dist.data.decode import read_images
from drl_dist.data.index import open_index
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.output.report import finite
from drl_dist.jobs.common.output.sheet import images_in
from drl_dist.jobs.long_run.diagnostics import MIN_DRAWS, mixing
from drl_dist.jobs.long_run.driver import long_run
from drl_dist.jobs.long_run.options import LongRunOptions, check_options
from drl_dist.jobs.long_run.output import figure, level_table
from drl_dist.mcmc.adaptation import StepSizes
from drl_dist.mcmc.kernels import kernel_named
from drl_dist.mcmc.settings import AdaptationConfig
from drl_dist.sampling.long_run import LongRunSampler
from drl_dist.training.chain import GradientEngine
from drl_dist.training.ema import load_averaged
from tests.support import ROOT, subprocess_environment, write_tiny_checkpoint

NUM_IMAGES = 5
# Not what suits this model, but what a draw has to do with is tested here.
START = "normal_approximation"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", width=4, num_chain_steps=2)


def command(model: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "jobs" / "long_run.py"),
            *("--model", str(model), "--out", str(out), "--num-images", str(NUM_IMAGES), "--batch-size", "3"),
            *more,
        ],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The output folder of a whole job, what it printed, and its progress."""
    out = tmp_path_factory.mktemp("long-run") / "out"
    adapt = ("--adapt.num-chains", "20", "--adapt.num-steps", "20")
    done = command(checkpoint, out, "--steps-per-level", "1,3,20", "--seed", "7", "--start", START, *adapt)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


@pytest.mark.integration
def test_the_job_writes_everything(finished: tuple[Path, str, str]) -> None:
    out, printed, told = finished
    assert {path.name for path in out.iterdir()} == {
        *("request.json", "step_sizes.json", "step_sizes.png", "diagnostics.json", "samples.png"),
        *(f"{kind}_{length}.png" for kind in ("samples", "stages") for length in (1, 3, 20)),
        *(f"steps_{length}" for length in (1, 3, 20)),
    }
    schedule = json.loads((out / "step_sizes.json").read_text())["schedule"]
    assert len(schedule["step_size"]) == 6
    assert all(0.6 <= rate <= 0.9 for rate in schedule["acceptance_rate"])
    for name in ("step_sizes.png", "samples.png", "samples_20.png", "stages_20.png"):
        with Image.open(out / name) as picture:
            assert np.asarray(picture).std() > 5 and picture.width >= MIN_WIDTH
            assert re.search(r"/checkpoint, step \d+, seed 7, kernel hmc$", picture.info["Description"])
    with Image.open(out / "samples.png") as picture:
        sheets = images_in(picture)
    assert sheets is not None and list(sheets) == ["1 step per level", "3 steps per level", "20 steps per level"]
    assert "adapting: 6/6 levels" in told
    assert "20 steps per level: 600/600 image steps" in told
    assert "image steps/s" in told
    assert "20 steps per level, 120 in all: 5 images" in printed
    assert printed.count("acceptance") == 4


@pytest.mark.integration
def test_diagnostics_say_what_the_chains_did(finished: tuple[Path, str, str]) -> None:
    out, _, _ = finished
    content = json.loads((out / "diagnostics.json").read_text())
    assert (content["kernel"], content["seed"], content["num_leapfrog_steps"]) == ("hmc", 7, 2)
    one, three, twenty = content["runs"]
    # With one step per level only the marginal top level has anything but draws.
    assert [row["level"] for row in one["levels"]] == [5]
    assert [row["num_steps"] for row in three["levels"]] == [2, 2, 2, 2, 2, 3]
    assert {row["num_chains"] for row in twenty["levels"]} == {NUM_IMAGES}
    for row in twenty["levels"]:
        assert 0.3 < row["acceptance_rate"] <= 1
        assert row["mixing"]["chains_per_law"] == (3 if row["is_marginal"] else 1)
        assert row["mixing"]["ess_min"] >= 1
    assert [row["is_marginal"] for row in twenty["levels"]] == [False] * 5 + [True]
    assert three["levels"][0]["mixing"] is None


@pytest.mark.integration
def test_the_images_are_those_of_the_sampler(finished: tuple[Path, str, str], checkpoint: Path) -> None:
    out, _, _ = finished
    stored = read_checkpoint(checkpoint)
    network = load_averaged(build_network(stored.experiment), stored.tensors["ema"])
    network.double()
    levels = build_levels(stored.experiment, build_ladder(stored.experiment.diffusion))
    step_sizes = json.loads((out / "step_sizes.json").read_text())["schedule"]["step_size"]
    for length in (1, 3):
        sampler = LongRunSampler(levels, tuple(step_sizes), kernel_named("hmc"), length)
        engine = GradientEngine(network, EngineConfig())
        parts = [
            to_uint8(sampler.sample(engine.raw_at, PhiloxNoise(7), ids, (1, 8, 8)).x)
            for ids in torch.arange(NUM_IMAGES).split(3)
        ]
        index = open_index(str(out / f"steps_{length}"))
        assert index.num_samples == NUM_IMAGES
        found = read_images(index, NUM_IMAGES)
        # Another number of threads rounds sums otherwise.
        assert float((found.float() - torch.cat(parts).float()).abs().max()) <= 1


@pytest.mark.integration
def test_a_schedule_is_used_again_by_nuts(
    finished: tuple[Path, str, str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = LongRunOptions(
        model=str(checkpoint),
        out=str(tmp_path),
        kernel="nuts",
        steps_per_level="10",
        num_images=2,
        max_tree_depth=3,
        schedule=str(finished[0]),
    )
    assert long_run(options) == 0
    printed = capsys.readouterr().out
    assert "adapting" not in printed
    # By itself the job sees that a draw does not suit six levels.
    assert "the chains of a level begin at x_noisy" in printed
    assert not (tmp_path / "step_sizes.json").exists()
    content = json.loads((tmp_path / "diagnostics.json").read_text())
    assert (content["kernel"], content["max_tree_depth"]) == ("nuts", 3)
    [only] = content["runs"]
    assert [row["num_steps"] for row in only["levels"]] == [10] * 6
    assert all(1 <= row["leapfrogs_per_step"] <= 7 for row in only["levels"])


@pytest.mark.integration
def test_a_schedule_of_another_model_is_one_sentence(
    finished: tuple[Path, str, str], checkpoint: Path, tmp_path: Path
) -> None:
    content = json.loads((finished[0] / "step_sizes.json").read_text())
    (tmp_path / "step_sizes.json").write_text(json.dumps(content | {"ema_sha256": "0" * 64}))
    done = command(checkpoint, tmp_path / "out", "--schedule", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "got those of a model with weights 000000000000, expected those of the model with weights" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_told_before_work(
    checkpoint: Path, tmp_path: Path, finished: tuple[Path, str, str]
) -> None:
    good = LongRunOptions(model=str(checkpoint), out=str(tmp_path / "out"))
    for changed, message in (
        ({"schedule": str(tmp_path)}, "step_sizes.json: got no such file"),
        ({"schedule": str(finished[0]), "kernel": "mala"}, "got those of hmc, expected those of mala"),
        ({"schedule": str(finished[0]), "num_leapfrog_steps": 3}, "got those of 2 leapfrog steps, expected those of 3"),
        ({"model": str(tmp_path)}, "got no complete checkpoint"),
        ({"out": "ftp://host/out"}, "storage URL"),
    ):
        with pytest.raises(UserError, match=message):
            long_run(dataclasses.replace(good, **changed))  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps_per_level": "1,,2"}, "--steps-per-level: got 1,,2"),
        ({"steps_per_level": "0,2"}, "--steps-per-level: got 0,2"),
        ({"steps_per_level": "2,2"}, "--steps-per-level: got 2,2"),
        ({"num_images": 0}, "--num-images: got 0"),
        ({"seed": -1}, "--seed: got -1"),
        ({"num_leapfrog_steps": 0}, "--num-leapfrog-steps: got 0"),
        ({"max_tree_depth": 13}, "--max-tree-depth: got 13"),
        ({"batch_size": 0}, "--batch-size: got 0"),
        ({"threads": 0}, "--threads: got 0"),
        ({"out": "out"}, "--out: got out"),
        ({"schedule": "here"}, "--schedule: got here"),
        ({"model": "digits"}, "--model: got digits"),
        ({"model": "", "out": ""}, "got no --model, --out"),
    ],
)
def test_impossible_options_are_refused(changed: dict[str, object], message: str) -> None:
    good = LongRunOptions(model="models:/digits@latest", out="/runs/long")
    check_options(good)
    assert good.chain_lengths == (1, 10, 100)
    with pytest.raises(UserError, match=message):
        check_options(dataclasses.replace(good, **changed))  # pyright: ignore[reportArgumentType]


def autoregressive(steps: int, chains: int, correlation: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(steps, chains, 2)) * math.sqrt(1 - correlation**2)
    values = np.zeros_like(noise)
    values[0] = generator.normal(size=(chains, 2))
    for step in range(1, steps):
        values[step] = correlation * values[step - 1] + noise[step]
    return values


def test_effective_sample_sizes_are_those_of_an_autoregression() -> None:
    found = mixing(autoregressive(3000, 8, 0.8), is_one_law=True)
    assert found is not None
    # Of an AR(1) chain, ESS / draws = (1 - r) / (1 + r).
    assert found.ess_per_step == pytest.approx(0.2 / 1.8, rel=0.15)
    assert (found.num_laws, found.chains_per_law) == (1, 8)
    assert found.r_hat_max is not None
    assert 0.99 < found.r_hat_max < 1.02


def test_chains_of_laws_of_their_own_are_not_compared() -> None:
    # Each chain about another mean: apart they mix, and as one law they disagree.
    trace = autoregressive(400, 6, 0.2) + 5 * np.arange(6)[None, :, None]
    apart, together = mixing(trace, is_one_law=False), mixing(trace, is_one_law=True)
    assert apart is not None
    assert together is not None
    assert apart.r_hat_max is not None
    assert together.r_hat_max is not None
    assert apart.r_hat_max < 1.1
    assert together.r_hat_max > 2
    drifting = trace + np.linspace(0, 5, 400)[:, None, None]
    found = mixing(drifting, is_one_law=False)
    assert found is not None
    assert found.r_hat_median is not None
    assert found.r_hat_median > 1.5


def test_chains_that_stand_still_or_are_short_claim_nothing() -> None:
    assert mixing(np.zeros((MIN_DRAWS - 1, 2, 3)), is_one_law=False) is None
    found = mixing(np.zeros((MIN_DRAWS, 2, 3)), is_one_law=False)
    assert found is not None
    assert (found.ess_min, found.ess_median, found.r_hat_max) == (1, 1, None)


def test_pictures_and_tables() -> None:
    schedule = StepSizes(
        step_size=tuple(0.001 * 1.01**t for t in range(300)),
        acceptance_rate=(0.7,) * 300,
        kernel="hmc",
        num_leapfrog_steps=2,
        num_chains=1,
        num_steps=1,
        seed=0,
    )
    assert np.asarray(Image.open(io.BytesIO(figure(schedule, AdaptationConfig(), "a, step 1")))).shape == (408, 1080, 4)
    row = {"level": 3, "is_shown": True, "acceptance_rate": 0.5, "displacement": 0.1, "energy_error_rms": math.inf}
    row |= {"num_divergences": 2, "leapfrogs_per_step": 2.0, "mixing": None}
    header, line = level_table([row, row | {"is_shown": False}]).split("\n")
    assert line.split() == ["3", "0.500", "0.1", "inf", "2", "2.0", "-", "-", "-"]
    assert len(header) == len(line)
    assert finite({"a": [math.nan, 1.0], "b": (math.inf, "x")}) == {"a": [None, 1.0], "b": [None, "x"]}
