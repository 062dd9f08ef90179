"""The commands' options: presets, overrides, dry runs, and mistakes told in one sentence."""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from drl_dist.checkpoints.configs import config_from_dict
from drl_dist.checkpoints.run_record import check_record, continued, write_record
from drl_dist.common.errors import UserError
from drl_dist.common.program import SIGNALS
from drl_dist.config.from_data import left_to_data
from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.common import entry as cli_entry
from drl_dist.jobs.common.entry import run_command
from drl_dist.jobs.ood.options import OodOptions
from drl_dist.jobs.train import options as cli_train
from drl_dist.jobs.train import own_options as cli_own
from drl_dist.jobs.train.options import chosen_fields, parse_train

ROOT = Path(__file__).resolve().parents[2]
COMPLETE = ("--data", "/data", "--run-name", "a", "--storage", "/runs")
LSUN = {"church_outdoor": "lsun_church64", "bedroom": "lsun_bedroom64"}

# A module of this name found first would be imported in place of the real one.
HEAVY = ("ray", "mlflow", "torch", "numpy", "webdataset", "fsspec")


def run_job(name: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, ROOT / "jobs" / name, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "arguments", "name"),
    [
        ("train_cifar10.py", (), "cifar10"),
        ("train_celeba64.py", (), "celeba64"),
        ("train_celeba64.py", ("--setting", "unet"), "celeba64"),
        ("train_lsun64.py", (), "lsun_church64"),
        ("train_lsun64.py", ("--category", "bedroom"), "lsun_bedroom64"),
        ("train_lsun128.py", ("--category", "church_outdoor"), "lsun_church128"),
        ("train_lsun128.py", ("--category=bedroom",), "lsun_bedroom128"),
        ("train_digits.py", (), "digits"),
        ("train_digits.py", ("--setting", "t6"), "digits"),
        ("train_fashion_mnist.py", (), "fashion_mnist"),
        ("train_fashion_mnist.py", ("--setting", "t6"), "fashion_mnist"),
    ],
)
def test_dry_run_prints_the_preset_as_json(job: str, arguments: tuple[str, ...], name: str, tmp_path: Path) -> None:
    for module in HEAVY:
        (tmp_path / f"{module}.py").write_text(f"raise ImportError('{module} is not needed for a dry run')")
    done = run_job(job, "--dry-run", *arguments, path=tmp_path)
    run = config_from_dict(RunConfig, json.loads(done.stdout), source="stdout")
    is_small = job in ("train_digits.py", "train_fashion_mnist.py") and not arguments
    setting = "unet" if "unet" in arguments or is_small else "t6"
    assert run == RunConfig(experiment=preset(name, setting))
    left = ", ".join(left_to_data(run.experiment))
    told = f"null here, and taken from the statistics of the data: {left}\n" if left else ""
    assert (done.returncode, done.stderr, bool(left)) == (0, told, "unet" in arguments)


def test_overrides_reach_every_section() -> None:
    run, is_dry_run = parse_train(
        "digits",
        [
            *COMPLETE,
            "--setting",
            "t6",
            "--model.num-res-blocks",
            "5",
            "--model.width-multipliers",
            "1",
            "1",
            "2",
            "--optim.beta1=0.5",
            "--mcmc.num_chain_steps",
            "10",
            "--train.num-steps",
            "3",
            "--train.horizontal-flip",
            "--diffusion.num-levels",
            "4",
            "--engine.precision",
            "bfloat16",
            "--engine.compile",
            "never",
            "--loader.cache-gib",
            "2",
            "--checkpoint.keep",
            "None",
            "--tracking.uri",
            "http://127.0.0.1:5000",
            "--num-workers",
            "2",
            "--use-gpu",
        ],
    )
    experiment = run.experiment
    assert not is_dry_run
    assert (experiment.model.num_res_blocks, experiment.model.width_multipliers) == (5, (1, 1, 2))
    assert (experiment.optim.beta1, experiment.mcmc.num_chain_steps) == (0.5, 10)
    assert (experiment.train.num_steps, experiment.train.horizontal_flip) == (3, True)
    assert (experiment.diffusion.num_levels, experiment.preset) == (4, "digits")
    assert (run.engine.precision, run.engine.compile, run.loader.cache_gib) == ("bfloat16", "never", 2.0)
    assert (run.checkpoint.keep, run.tracking.uri) == (None, "http://127.0.0.1:5000")
    assert (run.num_workers, run.use_gpu, run.data, run.run_name, run.storage) == (2, True, "/data", "a", "/runs")
    # Classes matter: what comes out is compared with what was stored.
    assert type(run) is RunConfig
    assert config_from_dict(RunConfig, json.loads(json.dumps(_as_dict(run))), source="test") == run


@pytest.mark.parametrize("arguments", [("--num-workers", "2:5"), ("--num-workers=2:5",)])
def test_a_range_of_workers(arguments: tuple[str, ...]) -> None:
    run, _ = parse_train("digits", [*COMPLETE[:4], *arguments, *COMPLETE[4:]])
    # 32 images for 3 or 5 workers are shared unevenly.
    assert (run.min_workers, run.num_workers, run.storage) == (2, 5, "/runs")


def _as_dict(run: RunConfig) -> dict[str, object]:
    from drl_dist.common.nested import to_dict

    return to_dict(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model.num-resblocks", "4"), r"got --model\.num-resblocks, .* did you mean --model\.num-res-blocks\?"),
        (("--beta1", "0.5"), r"got --beta1, expected a field of the config"),
        (("stray",), r"got stray, "),
        (("--preset", "cifar10"), r"got --preset, "),
        (("--category", "bedroom"), r"got --category, "),
        (("--optim.beta1", "half"), r"--optim\.beta1: got half, which is not a number, expected FLOAT"),
        (("--optim.beta1",), r"--optim\.beta1: got no value, expected FLOAT"),
        (("--model.width", "8.5"), r"--model\.width: got 8\.5, which is not a whole number, expected INT"),
        (("--engine.precision", "fp8"), r"got fp8, expected one of float32, bfloat16"),
        (("--optim.beta1", "1.5"), r"optim\.beta1: got 1\.5, expected a number in \[0, 1\)"),
        (("--num-workers", "3"), r"got 32 for 3 workers"),
        (("--num-workers", "0"), r"num_workers: got 0"),
        (("--num-workers", "4:2"), r"min_workers: got 4, expected none, or 1 to 2 \(num_workers\)"),
        (("--num-workers=0:2",), r"min_workers: got 0"),
        (("--num-workers", "2:"), r"--num-workers: got 2:, which is not a whole number, expected INT"),
        (("--num-workers", "1:33"), r"got 32 for 33 workers, expected an image for each worker"),
        (("--run-name", "a b"), r"run_name: got a b, expected letters"),
        (("--run-name", "../a"), r"run_name: got \.\./a"),
        (("--data", "shards"), r"data: got shards, expected a URL or an absolute path, as /.*/shards; "),
        (("--checkpoint.keep", "0"), r"checkpoint\.keep: got 0"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_train("digits", [*COMPLETE, *arguments])
    assert "\n" not in str(caught.value)


def test_a_run_that_is_shortened_keeps_the_share_of_its_first_objective(capsys: pytest.CaptureFixture[str]) -> None:
    def first(*words: str) -> int:
        return parse_train("digits", [*COMPLETE, *words])[0].experiment.optim.first_objective_steps

    assert first("--train.num-steps", "200") == 156
    said = "optim.first_objective_steps: 156, the share of 200 steps that 780 of 1000 are\n"
    assert capsys.readouterr().err == said
    # Otherwise, as it was: runs that exist say so.
    assert first("--train.num-steps", "781") == first("--train.num-steps", "2000") == first() == 780
    assert first("--train.num-steps", "200", "--optim.first-objective-steps", "20") == 20
    assert first("--setting", "t6", "--train.num-steps", "20") == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"got 200 of the 200 steps of train.num_steps"):
        first("--train.num-steps", "200", "--optim.first_objective_steps=200")
    with pytest.raises(UserError, match=r"got 780 of the 1 step of train.num_steps, .*; raise train.num_steps above"):
        first("--train.num-steps", "1")


def test_a_run_that_exists_keeps_its_own_first_objective_when_it_is_made_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--data", "/data", "--storage", str(tmp_path), "--run-name", "r1"]

    def parsed(*words: str) -> RunConfig:
        return parse_train("digits", [*places, *words])[0]

    begun = parsed("--train.num-steps", "5")
    write_record(begun.url, begun.experiment, "f00d")
    assert begun.experiment.optim.first_objective_steps == 4
    capsys.readouterr()
    # Shorter than the preset's first objective, longer than it, as long as the preset, and shorter than its own.
    for words, at_once in ((["8"], 4), (["2000"], 780), ([], 780), (["3"], 2)):
        run = parsed(*(["--train.num-steps", *words] if words else []))
        assert run.experiment.optim.first_objective_steps == at_once
        kept = continued(run, chosen_fields(words))
        assert kept.experiment.optim.first_objective_steps == 4
        check_record(run.url, kept.experiment, "f00d")
        printed = capsys.readouterr()
        assert printed.err == ""
        assert (printed.out == "run r1 goes on with its own optim.first_objective_steps, 4\n") == (at_once != 4)
    # What was typed is not passed over.
    words = ["--train.num-steps", "8", "--optim.first-objective-steps", "6"]
    with pytest.raises(UserError, match=r"optim\.first_objective_steps: 4 -> 6"):
        check_record(begun.url, continued(parsed(*words), chosen_fields(words)).experiment, "f00d")
    # A damaged record is said when the run starts, not by a dry run.
    (tmp_path / "r1" / "experiment.json").write_text("{")
    assert parsed("--train.num-steps", "8").experiment.optim.first_objective_steps == 6
    with pytest.raises(UserError, match=r"experiment\.json: got no JSON"):
        continued(parsed("--train.num-steps", "8"))


def test_unknown_category_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="got kitchen, expected one of church_outdoor, bedroom"):
        parse_train("", ["--category", "kitchen"], LSUN)
    with pytest.raises(UserError, match="got no value"):
        parse_train("", ["--category"], LSUN)


def test_every_row_of_the_table_has_a_door() -> None:
    doors = "".join(path.read_text() for path in (ROOT / "jobs").glob("train_*.py"))
    assert [name for name in TABLE_6 if f'"{name}"' not in doors] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "command line: got no --data, --run-name, --storage, "),
        (("--data", "/data", "--storage", "/runs"), "command line: got no --run-name, "),
        (("--nonsense",), "option: got --nonsense, "),
    ],
)
def test_a_door_ends_with_the_sentence_and_status_2(arguments: tuple[str, ...], sentence: str) -> None:
    done = run_job("train_digits.py", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_help_lists_fields_with_their_docstrings() -> None:
    done = run_job("train_lsun64.py", "--help")
    assert done.returncode == 0
    assert "--model.num-res-blocks" in done.stdout
    assert "N, the residual blocks per resolution level." in done.stdout
    assert "--category" in done.stdout
    assert "--preset" not in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_a_command_names_a_function_of_its_own_options(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command runs may be named by a text, which no type checker reads."""
    named: list[tuple[str | Callable[..., int], str]] = []

    def job(default: object, work: str | Callable[..., int], **_: object) -> None:
        if isinstance(work, str):
            named.append((work, type(default).__name__))

    def command(_parse: object, work: str | Callable[..., int], **_: object) -> None:
        named.append((work, "SweepPlan" if path.stem == "sweep" else "Wanted"))

    for module in (cli_entry, cli_train, cli_own):
        monkeypatch.setattr(module, "run_command", command)
    monkeypatch.setattr(cli_entry, "run_job", job)
    runpy.run_path(str(path), run_name="__main__")
    assert len(named) == (path.stem != "demo")
    for work, options in named:
        function = pkgutil.resolve_name(work) if isinstance(work, str) else work
        (parameter,) = inspect.signature(function).parameters.values()
        assert parameter.annotation == options


def status_of(command: Callable[[], NoReturn]) -> object:
    with pytest.raises(SystemExit) as end:
        command()
    return end.value.code


@pytest.fixture
def signals_kept() -> Iterator[None]:
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def test_nothing_is_imported_before_the_options_are_understood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(options: OodOptions) -> None:
        raise UserError("option --out", got=options.out, expected="another", remedy="correct it")

    for argv, check, sentence in (
        (["--out", "/here"], refuse, "option --out: got /here, expected another; correct it.\n"),
        (["--outt", "/here"], lambda _: None, "option: got --outt, expected a field of the config; did you mean"),
    ):
        monkeypatch.setattr(sys, "argv", ["ood.py", *argv])
        work = "no_such_module:work"
        assert (
            status_of(lambda: cli_entry.run_job(OodOptions(), work, check=check, description="", resumes=True)) == 2  # noqa: B023
        )
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert printed.err.startswith(sentence)
    assert status_of(lambda: run_command(lambda _: (7, True), "no_such_module:work", as_json=lambda x: {"x": x})) == 0
    assert json.loads(capsys.readouterr().out) == {"x": 7}


@pytest.mark.usefixtures("signals_kept")
@pytest.mark.parametrize(
    ("resumes", "sent", "status", "said"),
    [
        (True, signal.SIGTERM, 75, "stopped by SIGTERM; the same command resumes\n"),
        (True, signal.SIGINT, 75, "stopped by SIGINT; the same command resumes\n"),
        (False, signal.SIGINT, 130, "interrupted\n"),
    ],
)
def test_a_stop_ends_a_command_by_whether_it_resumes(
    resumes: bool, sent: signal.Signals, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: int) -> int:
        signal.raise_signal(sent)
        return 0

    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert status_of(lambda: run_command(lambda _: (7, False), work, resumes=resumes)) == status
    assert capsys.readouterr().err == said
    assert status_of(lambda: run_command(lambda _: (7, False), lambda number: number, resumes=resumes)) == 7
