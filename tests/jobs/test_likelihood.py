"""The likelihood job: the same numbers whatever happens to it, and mistakes told before anything is written."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from drl_dist.build import build_ladder, build_levels, build_network
from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.config.tree import EngineConfig
from drl_dist.data.index import open_index
from drl_dist.jobs.common.step_sizes import write_step_sizes
from drl_dist.jobs.likelihood.driver import likelihood_request, likelihood_run
from drl_dist.jobs.likelihood.options import LikelihoodOptions, check_options
from drl_dist.jobs.likelihood.output import FIGURE_NAME, REPORT_NAME, WEIGHTS_NAME, LikelihoodOutput
from drl_dist.jobs.likelihood.task import LikelihoodTasks, StepSizeTasks, TaskResult
from drl_dist.library.stored import TrainedModel, load_model
from drl_dist.likelihood.trust import TOO_SHARP
from drl_dist.localhost import MlflowServer
from drl_dist.mcmc.adaptation import StepSizes
from drl_dist.mcmc.settings import AdaptationConfig
from drl_dist.training.chain import GradientEngine
from drl_dist.training.ema import load_averaged
from tests.data.sets import write_set
from tests.helpers.forked import kill
from tests.support import ROOT, subprocess_environment, wait_for, write_tiny_checkpoint

NUM_CHAINS, NUM_IMAGES = 5, 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", width=4, num_chain_steps=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_set(str(folder), (4, 5))
    return folder


def options(checkpoint: Path, data: Path, out: Path, **changed: object) -> LikelihoodOptions:
    fields: dict[str, object] = {
        "model": str(checkpoint),
        "data": str(data),
        "out": str(out),
        "steps_per_level": "1,2",
        "num_chains": NUM_CHAINS,
        "num_images": NUM_IMAGES,
        "batch_size": 3,
        "seed": 4,
        "adapt": AdaptationConfig(num_chains=4, num_steps=4, lowest_rate=0.4, highest_rate=0.95),
    }
    return LikelihoodOptions(**fields | changed)  # pyright: ignore[reportArgumentType]


class Made:
    """A job's tasks, made in this process."""

    def __init__(self, given: LikelihoodOptions) -> None:
        self.options, self.model = given, load_model(given.model, None)
        self.index = open_index(given.data)
        self.request = likelihood_request(given, self.model, self.index, None)
        *counts, schedule = StepSizeTasks(self.model.experiment, self.model.ema, self.request).make(0)
        assert counts == [1] * 7
        assert isinstance(schedule, StepSizes)
        self.schedule = schedule

    def runner(self) -> LikelihoodTasks:
        return LikelihoodTasks(self.model.experiment, self.model.ema, self.request, self.schedule, self.index)

    def result(self, runner: LikelihoodTasks, task: int) -> TaskResult:
        *counts, result = runner.make(task)
        assert isinstance(result, TaskResult)
        assert sum(count for count in counts if isinstance(count, int)) == self.request.tasks()[task].num_items(6)
        return result


@pytest.fixture(scope="module")
def made(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(options(checkpoint, data, tmp_path_factory.mktemp("made") / "out"))


@pytest.fixture(scope="module")
def finished(made: Made) -> Path:
    """The folder of a job that was killed when all tasks were made, and started again."""
    output = LikelihoodOutput(made.options.out, made.request, 6)
    output.begin()
    output.write_step_sizes(made.schedule)
    runner = made.runner()
    for task in range(len(made.request.tasks())):
        output.keep(task, made.result(runner, task))
    assert likelihood_run(made.options) == 0
    return Path(made.options.out)


@pytest.mark.slow
def test_units_cover_every_chain_and_image_once(made: Made) -> None:
    tasks = made.request.tasks()
    chains = [(kind, length, NUM_CHAINS) for kind in ("down", "up") for length in (1, 2)]
    for kind, length, count in (("images", 0, NUM_IMAGES), *chains):
        numbers = [number for task in tasks if task[:2] == (kind, length) for number in task.numbers]
        assert numbers == list(range(count))
    assert all(len(task.numbers) <= 3 for task in tasks)
    few = dataclasses.replace(made.request, num_images=2)
    assert few.num_upward == 2


@pytest.mark.slow
def test_chains_from_draws_are_tasks_beside_the_others(made: Made) -> None:
    from_draws = Made(dataclasses.replace(made.options, upper_from="draws", out=f"{made.options.out}-draws"))
    more = [task for task in from_draws.request.tasks() if task not in made.request.tasks()]
    assert [(task.kind, task.num_bridges, len(task.numbers)) for task in more] == [
        ("up_from_draws", 2, 3),
        ("up_from_draws", 2, 2),
        ("up_from_draws", 1, 3),
        ("up_from_draws", 1, 2),
    ]
    number = from_draws.request.tasks().index(more[0])
    first, again = (from_draws.result(from_draws.runner(), number) for _ in range(2))
    assert first.arrays.keys() == {"log_weight", "acceptance_rate", "root_mean_square"}
    for name, values in first.arrays.items():
        np.testing.assert_array_equal(values, again.arrays[name])
    # What was asked for before there was a choice is still the same request.
    assert "upper_from" not in made.request.fields and from_draws.request.fields["upper_from"] == "draws"
    assert made.request.digest != from_draws.request.digest


@pytest.mark.slow
def test_a_unit_is_the_same_whoever_makes_it(made: Made) -> None:
    busy = made.runner()
    for task in (5, 0, 9):
        first, again = made.result(made.runner(), task), made.result(busy, task)
        assert first.arrays.keys() == again.arrays.keys()
        for name, values in first.arrays.items():
            np.testing.assert_array_equal(values, again.arrays[name])
    kinds = {made.request.tasks()[task].kind for task in (5, 0, 9)}
    assert len(kinds) >= 2


def test_log_densities_are_those_of_the_averaged_network(made: Made, checkpoint: Path) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    network = load_averaged(build_network(stored.experiment), stored.tensors["ema"])
    network.double()
    levels = build_levels(stored.experiment, build_ladder(stored.experiment.diffusion))
    found = made.result(made.runner(), 0)
    assert not np.array_equal(found.arrays["at_data"], found.arrays["at_x_0"])
    # Image 0 of the data set: within what half a grey level of dequantisation changes.
    from drl_dist.data.decode import read_images

    y = float(levels.transition_scale[0]) * (read_images(made.index, 1).double() - 127.5) / 127.5
    raw, gradient = GradientEngine(network, EngineConfig(), is_frozen=True).raw_at(torch.zeros(1, dtype=torch.int64))(y)
    scale = float(levels.energy_scale[0])
    reach = scale * float(gradient.abs().sum()) * 0.5 / 127.5
    assert abs(found.arrays["at_data"][0] - scale * float(raw)) < 1.5 * reach
    assert reach < 0.5 * abs(scale * float(raw))


def test_a_result_counts_for_its_own_request_only(made: Made) -> None:
    result = made.result(made.runner(), 3)
    data = result.to_bytes(made.request)
    back = TaskResult.from_bytes(data, made.request)
    assert back is not None
    assert (back.device, back.seconds) == (result.device, result.seconds)
    np.testing.assert_array_equal(back.arrays["log_weight"], result.arrays["log_weight"])
    assert TaskResult.from_bytes(data, dataclasses.replace(made.request, seed=5)) is None
    assert TaskResult.from_bytes(data[:-9], made.request) is None


@pytest.mark.slow
def test_a_killed_job_ends_where_it_would_have(finished: Path, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in finished.iterdir()} == {REPORT_NAME, FIGURE_NAME, WEIGHTS_NAME, "step_sizes.json"}
    report = json.loads((finished / REPORT_NAME).read_text())
    assert report["request"]["seed"] == 4
    assert [estimate["steps_per_level"] for estimate in report["estimates"]] == [1, 2]
    weights = load_file(finished / WEIGHTS_NAME)
    assert weights["down_2/log_weight"].shape == (6, NUM_CHAINS)
    assert weights["images/at_data"].shape == (NUM_IMAGES,)
    total = weights["down_2/log_weight"].sum(0)
    levels = build_levels(made.model.experiment, build_ladder(made.model.experiment.diffusion))
    expected = (
        np.logaddexp.reduce(total)
        - np.log(NUM_CHAINS)
        + 32 * np.log(2 * np.pi)
        + 64 * np.log(float(levels.transition_scale[0]))
    )
    assert report["estimates"][1]["lower"]["log_z"] == pytest.approx(expected)
    assert len(report["estimates"][1]["upper"]["levels"]) == 6
    assert np.asarray(Image.open(finished / FIGURE_NAME)).std() > 5
    assert report["summary"].startswith("bits/dim of the images: not known (fewer than 10 effective chains")
    assert report["warnings"].count(TOO_SHARP) == 1
    assert report["data_scale"].startswith("x = (grey level + u - 128) / 127.5")

    before = (finished / REPORT_NAME).read_bytes()
    assert likelihood_run(made.options) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (finished / REPORT_NAME).read_bytes() == before
    with pytest.raises(UserError, match=r"got another request \(seed: 4 -> 5\)"):
        likelihood_run(dataclasses.replace(made.options, seed=5))


@pytest.mark.integration
def test_a_likelihood_is_there_without_the_server_and_logged_when_it_is_back(
    made: Made,
    checkpoint: Path,
    mlflow_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from drl_dist.tracking import job_runs
    from drl_dist.tracking.registry import register_checkpoint
    from drl_dist.tracking.runs import open_run
    from drl_dist.tracking.server.client import connect

    client = connect(mlflow_server.uri)
    register_checkpoint(client, "away", open_run(mlflow_server.uri, "away", "trained", {}), 3, checkpoint, {})
    given = dataclasses.replace(
        made.options, model="models:/away@latest", out=str(tmp_path / "out"), tracking_uri=mlflow_server.uri
    )
    output = LikelihoodOutput(given.out, made.request, 6)
    output.begin()
    output.write_step_sizes(made.schedule)
    runner = made.runner()
    for task in range(len(made.request.tasks())):
        output.keep(task, made.result(runner, task))

    def away(*_: object, **__: object) -> str:
        raise UserError("MLflow server", got="no answer", expected="one", remedy="start it")

    with monkeypatch.context() as patched:
        patched.setattr(job_runs, "log_job_run", away)
        assert likelihood_run(given) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(
        "warning: the likelihood is not logged to MLflow: MLflow server: got no"
    )
    before = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert before.pop("mlflow_run", "") is None

    assert likelihood_run(given) == 0
    run_id = capsys.readouterr().out.partition("logged to MLflow as run ")[2].partition(",")[0]
    after = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert after.pop("mlflow_run") == run_id and after == before
    assert client.get_run(run_id).data.metrics["likelihood/bits_per_dim_lower"] == after["at_data"]["lower"]
    assert likelihood_run(given) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert not (tmp_path / "out" / "_progress").exists()


@pytest.mark.integration
def test_a_job_on_ray_killed_and_run_again_finds_the_same_numbers(
    finished: Path,
    made: Made,
    server_environment: dict[str, str],
    mlflow_server: MlflowServer,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    from drl_dist.tracking.registry import register_checkpoint
    from drl_dist.tracking.runs import open_run
    from drl_dist.tracking.server.client import connect

    client = connect(mlflow_server.uri)
    trained = open_run(mlflow_server.uri, "likelihood", "trained", {})
    version = register_checkpoint(client, "tiny-likelihood", trained, 3, checkpoint, {})
    arguments = ("--steps-per-level", "1,2", "--num-chains", str(NUM_CHAINS), "--num-images", str(NUM_IMAGES))
    arguments += ("--batch-size", "3", "--seed", "4", "--num-workers", "2", "--adapt.num-chains", "4")
    arguments += ("--adapt.num-steps", "4", "--adapt.lowest-rate", "0.4", "--adapt.highest-rate", "0.95")
    command = [sys.executable, str(ROOT / "jobs" / "likelihood.py"), "--model", "models:/tiny-likelihood@latest"]
    command += ["--data", made.options.data, "--out", str(tmp_path / "out"), *arguments]
    with (tmp_path / "killed.txt").open("w") as told:
        killed = subprocess.Popen(command, env=server_environment, stdout=subprocess.DEVNULL, stderr=told)
        try:
            # A record holds what one task found; the report comes after all of them, and after a picture.
            wait_for(lambda: list((tmp_path / "out").rglob("0*.safetensors")))
        finally:
            kill(killed)
    assert "adapting: 7/7 levels" in (tmp_path / "killed.txt").read_text()
    assert not (tmp_path / "out" / REPORT_NAME).exists()

    done = subprocess.run(command, env=server_environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming log Z" in done.stdout, "the kill came too late to be a test"
    assert "adapting" not in done.stderr
    ours, theirs = load_file(finished / WEIGHTS_NAME), load_file(tmp_path / "out" / WEIGHTS_NAME)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
    assert "bits/dim of 7 dequantised images" in done.stdout
    assert f"warning: {TOO_SHARP}\n" in done.stdout

    run_id = done.stdout.partition("logged to MLflow as run ")[2].partition(",")[0]
    run = client.get_run(run_id)
    report = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert (run.info.status, run.data.tags["model"]) == ("FINISHED", f"models:/tiny-likelihood/{version}")
    assert run.data.metrics["likelihood/log_z_lower"] == pytest.approx(report["estimates"][1]["lower"]["log_z"])
    history = client.get_metric_history(run_id, "likelihood/level_ess_lower")
    assert sorted(metric.step for metric in history) == list(range(6))
    assert {item.path for item in client.list_artifacts(run_id)} == {FIGURE_NAME, REPORT_NAME}
    tags = client.get_model_version("tiny-likelihood", str(version)).tags
    name = run.data.tags["drl_dist.run_name"]
    assert tags[f"likelihood.{name}"] == run_id
    # Five chains are too few.
    leading, _, number = tags[f"likelihood.{name}.bits_per_dim_lower"].partition("; ")
    assert leading.startswith("not known (fewer than 10 effective chains")
    assert float(number) == pytest.approx(report["at_data"]["lower"], rel=1e-5)
    assert run.data.tags["mlflow.note.content"] == report["summary"]
    assert report["summary"].startswith("bits/dim of the images: not known (fewer than 10 effective chains")


def test_weights_that_diverged_have_no_likelihood(made: Made) -> None:
    ema = {name: np.full_like(value, np.nan) for name, value in made.model.ema.items()}
    runner = LikelihoodTasks(made.model.experiment, ema, made.request, made.schedule, made.index)
    with pytest.raises(UserError, match="images 0 to 2: got values that are not finite"):
        list(runner.make(0))


def other_schedule(model: TrainedModel, folder: Path, **changed: object) -> str:
    fields: dict[str, object] = {
        "step_size": (0.1,) * 7,
        "acceptance_rate": (0.7,) * 7,
        "kernel": "hmc",
        "num_leapfrog_steps": 2,
        "num_chains": 1,
        "num_steps": 1,
        "seed": 0,
        "density": "marginal",
    }
    write_step_sizes(str(folder), StepSizes(**fields | changed), model.ema_sha256)  # pyright: ignore[reportArgumentType]
    return str(folder)


def test_what_does_not_fit_is_told_before_a_cluster_is_asked(
    made: Made, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    write_set(str(tmp_path / "large"), (3,), resolution=16)
    write_set(str(tmp_path / "colours"), (3,), channels=3)
    write_set(str(tmp_path / "one"), (1,))
    (tmp_path / "empty").mkdir()
    model, conditional = made.model, {"step_size": (0.1,) * 6, "acceptance_rate": (0.7,) * 6, "density": "conditional"}
    long_run = other_schedule(model, tmp_path / "long-run", **conditional)
    seven = other_schedule(model, tmp_path / "seven", step_size=(0.1,) * 8, acceptance_rate=(0.7,) * 8)
    leapfrogs = other_schedule(model, tmp_path / "leapfrogs", num_leapfrog_steps=3)
    for changed, message in (
        ({"model": str(tmp_path)}, "got no complete checkpoint"),
        ({"data": str(tmp_path / "empty")}, "got an empty or missing folder, expected image shards"),
        ({"data": str(tmp_path / "large")}, "got 16x16 pixels with 1 channel, expected 8x8 pixels with 1 channel"),
        ({"data": str(tmp_path / "colours")}, "got 8x8 pixels with 3 channels, expected 8x8 pixels with 1 channel"),
        ({"data": str(tmp_path / "one"), "num_images": None}, "got 1 image, expected at least 2"),
        ({"num_images": 10}, "got 9 images, expected at least 10"),
        ({"schedule": str(tmp_path)}, "step_sizes.json: got no such file, expected what a likelihood job wrote"),
        ({"schedule": long_run}, "got those of conditional densities, expected those of marginal densities"),
        ({"schedule": seven}, "got 7 levels, expected 6 levels"),
        ({"schedule": leapfrogs}, "got those of 3 leapfrog steps, expected those of 2"),
        ({"out": "ftp://host/out"}, "storage URL"),
        ({"out": long_run}, "got step_sizes.json of something else"),
    ):
        given = dataclasses.replace(options(checkpoint, data, tmp_path / "out"), **changed)
        with pytest.raises(UserError, match=message):
            likelihood_run(given)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_bad_input_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    write_set(str(tmp_path / "large"), (3,), resolution=16)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "jobs" / "likelihood.py"), "--model", str(checkpoint)),
            *("--data", str(tmp_path / "large"), "--out", str(tmp_path / "out")),
        ],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "expected 8x8 pixels with 1 channel as the model has" in done.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps_per_level": "0"}, "--steps-per-level: got 0"),
        ({"steps_per_level": "4097"}, "--steps-per-level: got 4097"),
        ({"steps_per_level": "2,2"}, "--steps-per-level: got 2,2"),
        ({"steps_per_level": "a"}, "--steps-per-level: got a"),
        ({"num_chains": 1}, "--num-chains: got 1, expected 2 to"),
        ({"num_images": 0}, "--num-images: got 0"),
        ({"seed": -1}, "--seed: got -1"),
        ({"num_leapfrog_steps": 0}, "--num-leapfrog-steps: got 0"),
        ({"batch_size": 0}, "--batch-size: got 0"),
        ({"num_workers": 0}, "--num-workers: got 0"),
        ({"cpus_per_worker": 0}, "--cpus-per-worker: got 0"),
        ({"out": "out"}, "--out: got out"),
        ({"data": "here"}, "--data: got here"),
        ({"schedule": "here"}, "--schedule: got here"),
        ({"model": "digits"}, "--model: got digits"),
        ({"model": "", "data": ""}, "got no --model, --data"),
    ],
)
def test_impossible_options_are_refused(changed: dict[str, object], message: str) -> None:
    good = LikelihoodOptions(model="models:/digits@latest", data="/data", out="/out", steps_per_level="16,4")
    check_options(good)
    assert good.chain_lengths == (4, 16)
    with pytest.raises(UserError, match=message):
        check_options(dataclasses.replace(good, **changed))
