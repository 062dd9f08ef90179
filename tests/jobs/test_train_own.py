"""`jobs/train.py`: what its options begin from, the names of its models, configs and runs that come back in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from drl_dist.checkpoints.run_config import stored_run, write_run_config
from drl_dist.checkpoints.run_record import RECORD, RUN_CONFIG, write_record
from drl_dist.common.errors import UserError
from drl_dist.common.nested import to_dict
from drl_dist.config.own_data import experiment_for
from drl_dist.config.presets import FIRST_STEPS, preset
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train import own_options
from drl_dist.jobs.train.model_name import check_model_name, model_name_for
from drl_dist.jobs.train.options import Wanted
from drl_dist.jobs.train.own_options import parse_own_options
from drl_dist.jobs.train.single_device import train_on_one_device
from tests.data.sets import write_set
from tests.helpers.checkpoints import add
from tests.support import ROOT

PLACES = ("--storage", "/runs", "--run-name", "a")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "mine"
    write_set(str(folder))
    return folder


def parsed(*words: object) -> RunConfig:
    return parse_own_options([str(word) for word in words])[0]


def refused(*words: object) -> str:
    with pytest.raises(UserError) as error:
        parsed(*words)
    return str(error.value)


@pytest.fixture(scope="module")
def config(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "whole.json"
    run = parsed("--data", shards, *PLACES, "--optim.beta1", ".7", "--engine.precision", "bfloat16", "--dry-run")
    path.write_text(json.dumps(to_dict(run)))
    return path


def test_the_data_decide_what_no_option_says(shards: Path) -> None:
    run = parsed("--data", shards, *PLACES)
    wanted = experiment_for(resolution=8, channels=1, num_images=53)
    assert (run.experiment, run.model_name) == (wanted, "mine")
    assert (run.registered_model, run.data) == ("mine", str(shards))
    other = parsed("--data", shards, *PLACES, "--setting", "t6", "--optim.beta1", ".5", "--model-name", "x")
    assert other.experiment.preset == "own" and other.experiment.optim.beta1 == 0.5 and other.model_name == "x"


def test_the_data_may_be_one_file_without_ray(tmp_path: Path) -> None:
    path = tmp_path / "faces.npy"
    np.save(path, np.zeros((7, 3, 48, 48), np.uint8))
    run = parsed("--data", path, *PLACES, "--without-ray")
    assert run.experiment == experiment_for(resolution=48, channels=3, num_images=7) and run.model_name == "faces"
    assert "one file of images" in refused("--data", path, *PLACES)
    np.save(path, np.zeros((7, 3, 48, 32), np.uint8))
    assert "images of 32x48 pixels, expected square ones" in refused("--data", path, *PLACES, "--without-ray")
    path.write_bytes(b"no array")
    assert refused("--data", path, *PLACES, "--without-ray").startswith(f"data {path}: got ")


@pytest.mark.parametrize(
    ("data", "run_name", "name"),
    [
        ("/a/mine", "r", "mine"),
        ("/a/mine/train", "r", "mine"),
        ("gs://bucket/My photos (1)", "r", "My-photos-1"),
        ("gs://bucket/train", "r", "r"),
        ("s3://bucket", "r", "r"),
        ("file:///x/faces.npy", "r", "faces"),
        ("/data/train", "", None),
        ("", "r", "r"),
    ],
)
def test_models_have_the_name_of_their_data_or_else_of_their_run(data: str, run_name: str, name: str | None) -> None:
    assert model_name_for(data, run_name) == name


@pytest.mark.parametrize(
    ("data", "run_name"), [("/data/digits", "r"), ("/data/celeba64_unet", "r"), ("", "digits_t1k")]
)
def test_no_name_of_a_preset_is_taken_by_accident(data: str, run_name: str) -> None:
    with pytest.raises(UserError, match=r"^option --model-name: got none, and \w+, .*add --model-name NAME\.$"):
        model_name_for(data, run_name)


def test_models_of_another_shape_are_none_of_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = preset("celeba64")
    run = RunConfig(experiment=experiment)
    check_model_name(run, "celeba")
    assert capsys.readouterr().err == ""
    check_model_name(run, "photos")
    assert "models of the data photos become versions of celeba64; --model-name" in capsys.readouterr().err
    smaller = to_dict(run)["experiment"]
    from drl_dist.checkpoints.configs import config_from_dict
    from drl_dist.config.tree import Experiment

    smaller["model"]["resolution"] = 48
    run = RunConfig(experiment=config_from_dict(Experiment, smaller, source="test"))
    with pytest.raises(
        UserError, match=r"^option --model-name: got none for images of 48x48.*64x64.*jobs/train\.py\.$"
    ):
        check_model_name(run, "celeba")
    check_model_name(RunConfig(experiment=run.experiment, model_name="celeba64"), "celeba")
    check_model_name(RunConfig(experiment=experiment_for(resolution=48, channels=3, num_images=5)), "celeba")


def test_what_a_dry_run_prints_comes_back_in(config: Path, shards: Path) -> None:
    whole = json.loads(config.read_text())
    assert to_dict(parsed("--config", config)) == whole
    run = parsed("--config", config, "--optim.beta1", ".8", "--run-name", "b")
    assert to_dict(run) == whole | {
        "run_name": "b",
        "experiment": whole["experiment"] | {"optim": whole["experiment"]["optim"] | {"beta1": 0.8}},
    }


def test_a_config_of_some_fields_is_laid_over_the_data_or_a_preset(tmp_path: Path, shards: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("# ours\nexperiment:\n  optim: {learning_rate: 1e-5}\n  model:\n    width: 8\nuse_gpu: true\n")
    run = parsed("--config", path, "--data", shards, *PLACES)
    own = experiment_for(resolution=8, channels=1, num_images=53)
    assert (run.experiment.optim.learning_rate, run.experiment.model.width, run.use_gpu) == (1e-5, 8, True)
    assert run.experiment.train == own.train and run.experiment.preset == "own_unet"
    run = parsed("--config", path, "--preset", "celeba64", "--data", "/data/faces", *PLACES)
    assert (run.experiment.preset, run.experiment.model.width, run.model_name) == ("celeba64", 8, "faces")
    assert run.experiment.train == preset("celeba64").train
    assert "neither --data nor --preset" in refused("--config", path, *PLACES)
    path.write_text(f"data: {shards}\nstorage: /runs\nrun_name: a\n")
    assert parsed("--config", path).experiment == own


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("experiment:\n  model: {widht: 5}\n", "field experiment.model.widht: got no such field"),
        ("experiment:\n  model: {widht: 5}\n", "did you mean experiment.model.width? "),
        ("model: {width: 5}\n", "did you mean experiment.model? "),
        ("experiment:\n  model: {width: 5.5}\n", "field experiment.model.width: got 5.5, expected a valid integer"),
        ('num_workers: "2"\n', "field num_workers: got '2', expected a valid integer"),
        ("experiment:\n  model: 5\n", "field experiment.model: got 5"),
        ("experiment: 5\n", "field experiment: got 5"),
        ("data: 5\n", "field data: got 5, expected a valid string"),
        ("experiment:\n  model: {resolution: 9}\n", "model.resolution: got 9, expected a positive multiple of 2"),
        ("experiment: [\n", "line 2: expected the node content"),
        ("num_workers: 1\nnum_workers: 2\n", 'line 2: found duplicate key "num_workers"'),
        ("", "got no fields"),
        ("- 1\n", "got no fields"),
        ("storage: a/b\n", "config field storage: got a/b, expected a URL or an absolute path"),
    ],
)
def test_a_config_that_cannot_be_used_is_said_with_its_place(
    text: str, said: str, tmp_path: Path, shards: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    message = refused("--config", path, "--data", shards, "--dry-run")
    assert said in message and "\n" not in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "command line: got no --data, expected the data, a --preset or a --config"),
        (("--dta", "/x"), "option: got --dta, expected a field of the config; did you mean --data?"),
        (("--config",), "option --config: got no value"),
        (("--config", "/nonesuch.yaml"), "option --config: got /nonesuch.yaml: [Errno 2]"),
        (("--data", "/nonesuch"), "data /nonesuch: got an empty or missing folder, expected image shards"),
        (("--data", "here"), "option --data: got here, expected a URL or an absolute path"),
        (("--preset", "nope"), "option --preset: got nope, expected one of cifar10, celeba64"),
        (("--preset", "celeba64", "--setting", "t7"), "option --setting: got t7, expected one of unet, t6"),
        (("--resume", "here"), "option --resume: got here, expected a URL or an absolute path"),
        (("--resume", "/nonesuch/r"), "run /nonesuch/r: got no experiment.json, expected the folder of a run"),
        (("--resume", "/r/checkpoint_000000020"), "got a checkpoint, expected the folder of a run"),
        (("--resume", "/r", "--preset", "celeba64"), "option --preset: got celeba64 beside --resume"),
        (("--resume", "/r", "--setting", "t6"), "option --setting: got t6 beside --resume"),
        (("--resume", "/r", "--config=x"), "option --config: got x beside --resume"),
    ],
)
def test_what_no_run_begins_from_is_said(words: Sequence[str], said: str) -> None:
    assert said in refused(*words)


@pytest.mark.parametrize(("option", "value"), [("--preset", "celeba64"), ("--setting", "t6")])
def test_a_whole_config_needs_no_other_beginning(config: Path, option: str, value: str) -> None:
    assert f"option {option}: got {value} beside a config" in refused("--config", config, option, value)


def test_a_size_without_a_network_names_the_nearest(tmp_path: Path) -> None:
    write_set(str(tmp_path), (3,), resolution=37, channels=3)
    assert "prepare the data with --resolution 36 or 40" in refused("--data", tmp_path, *PLACES)


@pytest.mark.parametrize("setting", ["unet", "t6", "t1k_dsm"])
def test_a_network_of_ones_own_takes_any_size(tmp_path: Path, setting: str) -> None:
    data = tmp_path / "odd"
    write_set(str(data), (30,), resolution=17, channels=3)
    mine = ("--setting", setting, "--model.network")
    for words in (
        (*mine, "my_network:MyNetwork"),
        ("--setting", setting, "--model.network=my_network:Other"),
    ):
        run = parsed("--data", data, *PLACES, *words)
        assert run.experiment.model.resolution == 17 and run.experiment.train.batch_size == 8
    chosen = tmp_path / "part.json"
    chosen.write_text('{"experiment": {"model": {"network": "my_network:MyNetwork"}}}')
    assert parsed("--data", data, *PLACES, "--config", chosen).experiment.model.network == "my_network:MyNetwork"
    for name in ("unet", "wide_resnet"):
        assert "prepare the data with --resolution 16 or 18" in refused("--data", data, *PLACES, *mine, name)


def test_a_run_goes_on_with_all_that_its_folder_says(tmp_path: Path, shards: Path) -> None:
    run = parsed(
        "--data", shards, "--storage", tmp_path, "--run-name", "r", "--loader.cache-gib", "3", "--num-workers", "2"
    )
    write_record(run.url, run.experiment, "0" * 64)
    write_run_config(run, without_ray=False)
    assert parsed("--resume", run.url) == run == parsed("--resume", run.url + "/")
    assert stored_run(run.url).without_ray is False
    more = ("--num-workers", "1", "--loader.cache-gib", "5", "--train.num-steps", "2000", "--data", "/moved")
    changed = parsed("--resume", run.url, *more, "--use-gpu", "--max-rollbacks", "2", "--tracking.num-samples", "4")
    assert (changed.num_workers, changed.loader.cache_gib, changed.data) == (1, 5, "/moved")
    assert changed.experiment.train.num_steps == 2000 and changed.experiment.optim == run.experiment.optim
    # The folder is where it is found, whatever it says.
    moved = tmp_path / "elsewhere/s"
    moved.parent.mkdir()
    (tmp_path / "r").rename(moved)
    assert parsed("--resume", moved).url == str(moved)
    for words, named in (
        (("--optim.learning-rate", "1e-3"), "--optim.learning-rate"),
        (("--train.seed", "1", "--model.width", "4"), "--model.width, --train.seed"),
        (("--run-name", "other"), "--run-name"),
        (("--model-name", "other"), "--model-name"),
        (("--start-from", "/x/checkpoint_000000001"), "--start-from"),
    ):
        assert f"option --resume: got {named} beside it" in refused("--resume", moved, *words)
    # The same value is no other.
    assert parsed("--resume", moved, "--train.seed", "0").experiment == run.experiment


def test_a_run_is_made_no_shorter_than_it_is(tmp_path: Path, shards: Path) -> None:
    run = parsed("--data", shards, "--storage", tmp_path, "--run-name", "r", "--train.num-steps", "1000")
    first = run.experiment.optim.first_objective_steps
    write_record(run.url, run.experiment, "0" * 64)
    write_run_config(run, without_ray=False)
    said = "option --train.num-steps: got 3 beside --resume, expected "
    assert said + f"more than the {first} steps of its first objective, " in refused(
        "--resume", run.url, "--train.num-steps", "3"
    )
    for step in (40, first + 1):
        add(tmp_path / "r", step)
        told = refused("--resume", run.url, "--train.num-steps", "3")
        assert said + f"at least the {step} steps that the run has made; leave it out, or give more" in told
    assert parsed("--resume", run.url, "--train.num-steps", first + 1).experiment.train.num_steps == first + 1


def test_a_run_that_names_code_is_resumed_with_permission_alone(tmp_path: Path, shards: Path) -> None:
    run = parsed(
        *("--data", shards, "--storage", tmp_path, "--run-name", "r"),
        "--model.network",
        "docs.examples.my_network:MyNetwork",
    )
    write_record(run.url, run.experiment, "0" * 64)
    write_run_config(run, without_ray=False)
    said = "got docs.examples.my_network:MyNetwork, code that is not part of drl_dist"
    assert said in refused("--resume", run.url)
    assert said in refused("--resume", run.url, "--allow-code", "other:Name")
    assert parsed("--resume", run.url, "--allow-code", "docs.examples.my_network:MyNetwork") == run


@pytest.mark.parametrize("more", [("--estimate",), ("--tflops", "0.2"), ("--dry-run",)])
def test_what_is_asked_about_a_run_does_not_start_it(more: tuple[str, ...], shards: Path) -> None:
    _, options = parse_own_options(["--data", str(shards), *more])
    assert options.dry_run
    assert "option --tflops: got 0" in refused("--data", shards, "--tflops", "0")


def test_a_run_of_an_earlier_version_asks_for_its_data(tmp_path: Path, shards: Path) -> None:
    run = RunConfig(
        experiment=preset("digits"), data=str(shards), storage=str(tmp_path), run_name="r", start_from="/a/checkpoint"
    )
    write_record(run.url, run.experiment, "0" * 64, run.start_from)
    assert "got no record of its data, as runs of earlier versions have none" in refused("--resume", run.url)
    assert parsed("--resume", run.url, "--data", shards) == run
    assert parsed("--resume", run.url, "--data", shards, "--model-name", "x").model_name == "x"


@pytest.mark.parametrize(
    ("record", "text", "said"),
    [
        (RECORD, "{", f"/{RECORD}: got "),
        (RECORD, '{"experiment": {"preset": "x", "model": {"width": "a"}}}', "field model.width: got 'a'"),
        (RUN_CONFIG, "[]", f"/{RUN_CONFIG}: got "),
        (RUN_CONFIG, "{}", "got an object without run and without_ray"),
        (RUN_CONFIG, '{"run": {"num_workers": "x"}, "without_ray": true}', "field num_workers: got 'x'"),
    ],
)
def test_damaged_records_are_said(record: str, text: str, said: str, tmp_path: Path, shards: Path) -> None:
    run = parsed("--data", shards, "--storage", tmp_path, "--run-name", "r")
    write_record(run.url, run.experiment, "0" * 64)
    (tmp_path / "r" / record).write_text(text)
    assert said in refused("--resume", run.url, "--data", shards)


def test_a_config_chooses_the_first_objective_unless_the_command_shortens_it(
    config: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[Wanted] = []

    def run_command(parse: Callable[[Sequence[str]], tuple[Wanted, bool]], *_: object, **__: object) -> None:
        wanted.append(parse(words)[0])

    monkeypatch.setattr(own_options, "run_command", run_command)
    partial = config.with_name("part.json")
    partial.write_text('{"experiment": {"train": {"seed": 1}}}')
    for path, more, chosen in (
        (config, (), (FIRST_STEPS,)),
        (config, ("--train.num-steps", "20"), ()),
        (partial, (), ()),
        (partial, ("--optim.first-objective-steps=9",), (FIRST_STEPS,)),
    ):
        words = ["--data", str(shards), *PLACES, "--config", str(path), *more]
        own_options.own_train_command()
        assert wanted.pop()[2] == chosen


@pytest.mark.slow
def test_own_images_are_trained_without_ray_and_resumed_by_their_folder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "photos"
    write_set(str(data), (20,), channels=3, resolution=12, measured=True)
    small = ("--model.width", "8", "--model.time-hidden-dim", "8", "--diffusion.num-levels", "2")
    words = ("--train.num-steps", "3", "--optim.first-objective-steps", "2", "--tracking.num-samples", "2")
    run = parsed("--data", data, "--storage", tmp_path, "--run-name", "r", "--without-ray", *small, *words)
    assert train_on_one_device(run) == 0
    stored = json.loads((tmp_path / "r" / RUN_CONFIG).read_text())
    assert (stored["without_ray"], stored["run"]["data"], stored["run"]["model_name"]) == (True, str(data), "photos")
    assert stored_run(run.url).run.experiment.model.data_std is not None
    resumed, options = parse_own_options(["--resume", run.url, "--train.num-steps", "4"])
    assert options.without_ray
    assert train_on_one_device(resumed) == 0
    assert "resuming after step 3" in capsys.readouterr().out
    assert (tmp_path / "r/checkpoint_000000004").is_dir()


@pytest.mark.slow
def test_help_and_a_preset_need_no_data_and_no_torch(tmp_path: Path) -> None:
    for module in ("torch", "ray", "mlflow", "numpy", "pyarrow"):
        (tmp_path / f"{module}.py").write_text(f"raise ImportError('{module}')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for words in (["--help"], ["--preset", "celeba64", "--dry-run"]):
        done = subprocess.run(
            [sys.executable, ROOT / "jobs/train.py", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "--resume" in done.stdout or re.search(r'"preset": "celeba64"', done.stdout)
