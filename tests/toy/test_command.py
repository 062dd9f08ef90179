"""``python -m drl_dist.toy``, end to end in a tiny size, and what it refuses."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH
from drl_dist.localhost import processes
from drl_dist.toy.__main__ import main
from drl_dist.toy.density import Grid
from drl_dist.toy.distributions import DISTRIBUTIONS
from drl_dist.toy.side_by_side import fit_all
from drl_dist.toy.study import Fit, fit, num_chain_steps
from drl_dist.toy.training import drl_experiment, short_run_experiment
from tests.helpers.forked import real_python
from tests.support import ROOT, subprocess_environment, wait_for

EXTRAS = ["ray", "mlflow", "fsspec", "webdataset", "pyarrow", "safetensors", "pydantic", "tyro", "rich", "sklearn"]
"""What the command does without; a None in sys.modules makes an import fail as if it were not installed."""
COMMAND = [real_python(), "-m", "drl_dist.toy"]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python, and every one that it starts, finds none of the extras."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n")
    return subprocess_environment({"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})


def toy(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


@pytest.mark.slow
def test_it_draws_and_reports_without_the_extras(bare: dict[str, str], tmp_path: Path) -> None:
    ran = toy(bare, "rings", "--steps", "2", "--lengthen", "1", "--out", str(tmp_path / "new" / "folder"))
    assert ran.returncode == 0, ran.stderr
    pictures = sorted((tmp_path / "new" / "folder").iterdir())
    assert [path.name for path in pictures] == ["rings.json", "rings_comparison.png", "rings_levels.png"]
    for path in pictures[1:]:
        with Image.open(path) as picture:
            assert picture.width >= MIN_WIDTH
            assert re.fullmatch(r"rings: .* likelihood, step 2, seed 0", picture.info["Description"])
        assert str(path) in ran.stdout
    (numbers,) = re.findall(r"total variation from the exact one +([\d.]+) +([\d.]+)", ran.stdout)
    # Two steps learn nothing.
    assert all(0.2 < float(number) <= 1 for number in numbers)
    # K = 30 of each: two steps and T + 1 chains of the long runs, with T = 6 and T = 1.
    assert re.search(r"390/390 chain steps, .*steps/s, .*(recovery|short-run): long runs", ran.stderr), ran.stderr


@pytest.mark.slow
def test_bad_input_is_one_sentence_and_exit_status_2(bare: dict[str, str], tmp_path: Path) -> None:
    ran = toy(bare, "moons", "--out", str(tmp_path / "out"))
    assert ran.returncode == 2
    assert ran.stderr == (
        "data set: got moons, expected one of checkerboard, rings, mixture, spirals; choose one of these.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "option --steps: got 0, expected 1 to 1000000; correct the option."),
        (
            ["--steps", "many"],
            "command line: got argument --steps: invalid whole_number value: 'many', expected options",
        ),
        (["--lengthen", "0"], "option --lengthen: got 0, expected 1 to 1000; correct the option."),
        (["--seed", "-1"], r"option --seed: got -1, expected a number in \[0, 2\*\*63\); correct the option."),
        (["--stepz", "3"], "command line: got unrecognized arguments: --stepz 3, expected options as --help"),
    ],
)
def test_options_that_cannot_be_used(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        main(["rings", "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_whole_numbers_are_written_as_those_of_jobs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="option --steps: got 2000000, expected 1 to 1000000"):
        main(["rings", "--out", str(tmp_path / "out"), "--steps", "2e6"])


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"option --out: got .*/file/below \(Not a directory\), expected a folder that"):
        main(["rings", "--out", str(tmp_path / "file" / "below")])
    # /proc exists and is a folder, but nobody, root included, can make a file there.
    with pytest.raises(UserError, match=r"option --out: got /proc \(.*\), expected a folder that can be written"):
        main(["rings", "--out", "/proc"])


def test_pictures_of_other_options_are_not_drawn_over(tmp_path: Path) -> None:
    (tmp_path / "rings_levels.png").write_bytes(b"mine")
    given = ["rings", "--steps", "3", "--lengthen", "2", "--out", str(tmp_path)]
    for record, differences in (
        (None, "name: unknown -> rings, seed: unknown -> 0, steps: unknown -> 3, lengthen: unknown -> 2"),
        ('{"name": "rings", "seed": 1, "steps": 3, "lengthen": 2}', "seed: 1 -> 0"),
        ("[", "name: unknown -> rings"),
    ):
        if record is not None:
            (tmp_path / "rings.json").write_text(record)
        with pytest.raises(UserError, match=rf"option --out: got .*, with pictures of other options \({differences}"):
            main(given)
    assert (tmp_path / "rings_levels.png").read_bytes() == b"mine"


def test_without_matplotlib_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"matplotlib: got no such package, .*; pip install matplotlib"):
        main(["rings", "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_command_and_the_other(tmp_path: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "drl_dist.toy", "rings", "--steps", "100000", "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=subprocess_environment(),
    )
    assert command.stderr is not None
    while "loss" not in command.stderr.readline():
        assert command.poll() is None

    killed, other = (
        process.pid
        for process in processes.tree(command.pid)
        if b"spawn_main" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    )
    os.kill(killed, signal.SIGKILL)
    said = command.stderr.read().splitlines()[-1]
    assert command.wait() == 2
    assert re.match(r"learning by (recovery|short-run): got a process that ended with exit code -9, expected it", said)
    assert not list((tmp_path / "out").iterdir())
    wait_for(lambda: not Path(f"/proc/{other}").exists())


@pytest.mark.slow
def test_both_at_once_are_what_each_is_alone() -> None:
    grid, name = Grid(cells=16), "mixture"
    experiments = {
        "recovery": drl_experiment(seed=3, num_steps=2),
        "short-run": short_run_experiment(seed=3, num_steps=2),
    }
    progress: list[tuple[int, str]] = []
    together = fit_all(
        experiments, name, grid, lengthen=1, on_progress=lambda items, note: progress.append((items, note))
    )
    assert list(together) == list(experiments)
    assert sum(items for items, _ in progress) == sum(
        num_chain_steps(experiment, 1) for experiment in experiments.values()
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = {label: fit(DISTRIBUTIONS[name], experiments[label], label, grid, lengthen=1) for label in experiments}
    finally:
        torch.set_num_threads(threads)

    def tensors(of: Fit) -> list[torch.Tensor]:
        return [
            of.stages,
            of.long_run,
            of.marginal_run,
            *of.learned,
            *of.exact,
            *of.model.network.state_dict().values(),
        ]

    for label in experiments:
        pairs = zip(tensors(together[label]), tensors(alone[label]), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs), label


@pytest.mark.slow
def test_a_way_that_runs_away_ends_the_other() -> None:
    wild = drl_experiment(seed=0, num_steps=100_000)
    wild = dataclasses.replace(wild, optim=dataclasses.replace(wild.optim, learning_rate=1e3, warmup_steps=0))
    tame = short_run_experiment(seed=0, num_steps=100_000)
    with pytest.raises(UserError, match=r"training: got a loss of .* expected one within 1e\+04 nats"):
        fit_all({"wild": wild, "tame": tame}, "rings", Grid(), lengthen=1, on_progress=lambda items, note: None)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_interrupt_ends_all_in_one_word(bare: dict[str, str], tmp_path: Path) -> None:
    # A shell lets what it starts in the background ignore SIGINT, tests and their children too.
    command = subprocess.Popen(
        ["env", "--default-signal=INT", *COMMAND, "rings", "--steps", "100000", "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=bare,
        start_new_session=True,
    )
    assert command.stderr is not None
    while "loss" not in command.stderr.readline():
        assert command.poll() is None
    # As a terminal does it.
    os.killpg(command.pid, signal.SIGINT)
    *progress, said = command.stderr.read().splitlines()
    assert said == "interrupted"
    assert all("chain steps" in one for one in progress), progress
    assert command.wait() == 130
    assert not list((tmp_path / "out").iterdir())
