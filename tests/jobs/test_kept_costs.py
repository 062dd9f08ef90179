"""What steps cost is traced once in a run, by its first worker."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drl_dist.checkpoints.step_costs import STEP_COSTS, read_step_costs, write_step_costs
from drl_dist.common.errors import UserError
from drl_dist.config.tree import EngineConfig, Experiment, RunConfig
from drl_dist.data.filesystem import Folder
from drl_dist.jobs.train.faults.restore import broadcast
from drl_dist.jobs.train.memory import KeptCosts
from drl_dist.jobs.train.options import parse_train_options
from drl_dist.jobs.train.single_device import train_on_one_device
from drl_dist.training import traced_costs
from drl_dist.training.cost import StepCost, step_cost
from drl_dist.training.memory import TENSORS_SHARE, fit_memory
from drl_dist.training.traced_costs import cost_key, known_step_cost, worth_keeping
from tests.helpers.steps import tiny, tiny_unet
from tests.support import ROOT
from tests.worlds import run_world

CPU = torch.device("cpu")
PLENTY, LITTLE = 4.0, 1e-5
"""GiB in which everything fits, and nothing."""


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """What was traced, where the real trace is made."""
    made: list[EngineConfig] = []

    def trace(experiment: Experiment, *, num_workers: int, engine: EngineConfig) -> StepCost:
        made.append(engine)
        return step_cost(experiment, num_workers=num_workers, engine=engine)

    monkeypatch.setattr(traced_costs, "step_cost", trace)
    return made


def options(folder: Path, num_steps: int, name: str = "a", **more: object) -> RunConfig:
    words = {
        "--data": folder / "images.npy",
        "--storage": folder / "runs",
        "--run-name": name,
        "--model.width": 4,
        "--model.time-hidden-dim": 8,
        "--mcmc.num-chain-steps": 2,
        "--train.batch-size": 4,
        "--train.num-steps": num_steps,
        "--tracking.num-samples": 2,
        "--tracking.sample-every-steps": 100,
        "--engine.threads-per-worker": 1,
        "--engine.memory-gib": PLENTY,
        **{f"--{option.replace('__', '.').replace('_', '-')}": value for option, value in more.items()},
    }
    arguments = [str(word) for pair in words.items() for word in pair]
    return parse_train_options("digits", ["--without-ray", "--setting", "t6", *arguments])[0]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", np.zeros((8, 1, 8, 8), np.uint8))
    return tmp_path


def test_a_second_start_traces_nothing_unless_the_batch_or_the_memory_changes(
    images: Path, traced: list[EngineConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_on_one_device(options(images, 1)) == 0
    assert len(traced) == 1
    first = next(line for line in capsys.readouterr().out.splitlines() if "memory: all at once" in line)
    # A longer run makes the same steps.
    assert train_on_one_device(options(images, 2)) == 0
    assert len(traced) == 1 and first in capsys.readouterr().out
    # A smaller device: what is known stays known, and the other ways are traced.
    run = options(images, 3, engine__memory_gib=plain_gib(options(images, 1)) * 0.99)
    assert train_on_one_device(run) == 0
    assert len(traced) > 1 and all(engine.chain_images != 4 or engine.memory != "slices" for engine in traced[1:])
    known = len(traced)
    assert train_on_one_device(dataclasses.replace(run, experiment=options(images, 4).experiment)) == 0
    assert len(traced) == known
    # A run's batch is its own; that of another one costs something else, whatever lies in its folder.
    other = options(images, 1, "b", train__batch_size=6)
    assert train_on_one_device(other) == 0
    assert len(traced) == known + 1


def plain_gib(run: RunConfig) -> float:
    """The memory that the run's step takes all at once."""
    return step_cost(run.experiment).peak_bytes / TENSORS_SHARE / 2**30


@pytest.mark.parametrize("text", ["{", '{"costs": {"a": {"num_parameters": "1"}}}', '{"costs": [1]}', "[]"])
def test_damaged_costs_are_traced_again(
    text: str, images: Path, traced: list[EngineConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_on_one_device(options(images, 1)) == 0
    path = images / "runs/a" / STEP_COSTS
    whole = path.read_text()
    path.write_text(text)
    assert train_on_one_device(options(images, 2)) == 0
    assert len(traced) == 2 and path.read_text() == whole
    assert f"{path} is damaged and will be written again" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["read", "write"])
def test_storage_that_fails_for_costs_alone_ends_no_run(
    method: str,
    images: Path,
    traced: list[EngineConfig],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert train_on_one_device(options(images, 1)) == 0
    (images / "runs/a" / STEP_COSTS).unlink()
    original = getattr(Folder, method)

    def failing(self: Folder, name: str, *more: Any) -> Any:
        if name == STEP_COSTS:
            raise UserError("storage", got="no answer", expected="one", remedy="wait")
        return original(self, name, *more)

    monkeypatch.setattr(Folder, method, failing)
    assert train_on_one_device(options(images, 2)) == 0
    assert len(traced) == 2 and (images / "runs/a" / STEP_COSTS).exists() == (method == "read")
    told = "traced again" if method == "read" else "not kept for later starts"
    assert f"what steps cost is {told}: storage: got no answer" in capsys.readouterr().err


def test_costs_of_another_version_are_traced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, engine, costs = tiny(), EngineConfig(), dict[str, dict[str, int]]()
    cost = known_step_cost(costs, experiment, num_workers=1, engine=engine)
    (key,) = costs
    assert cost == step_cost(experiment, engine=engine) and costs[key] == dataclasses.asdict(cost)
    # Fields that this version does not know.
    costs[key] = costs[key] | {"other": 1}
    assert known_step_cost(costs, experiment, num_workers=1, engine=engine) == cost and "other" not in costs[key]
    for name in ("torch.__version__", "drl_dist.training.traced_costs.installed_version"):
        with monkeypatch.context() as patch:
            patch.setattr(name, "9" if name.startswith("torch") else lambda: "9")
            assert cost_key(experiment, num_workers=1, engine=engine) != key


def test_a_key_tells_apart_what_costs_something_else() -> None:
    experiment, engine = tiny(batch_size=12), EngineConfig()
    key = cost_key(experiment, num_workers=1, engine=engine)
    assert cost_key(tiny(batch_size=12, num_steps=7), num_workers=1, engine=limited(1.0)) == key
    changed: list[dict[str, Any]] = [
        {"num_workers": 2},
        {"experiment": tiny(batch_size=11)},
        {"engine": EngineConfig(precision="bfloat16")},
        {"engine": EngineConfig(memory="slices", chain_images=2)},
        # Of five and of four, the largest has three images, but another share of the state.
        {"engine": EngineConfig(shard=True), "num_workers": 5},
        {"engine": EngineConfig(shard=True), "num_workers": 4},
        {"experiment": dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, width=12))},
    ]
    keys = {cost_key(**({"experiment": experiment, "num_workers": 1, "engine": engine} | more)) for more in changed}
    assert len(keys) == len(changed) and key not in keys


def test_parts_of_ones_own_are_traced_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Their code may change under its name.
    monkeypatch.setattr(traced_costs, "step_cost", lambda *_, **__: step_cost(tiny()))
    costs = dict[str, dict[str, int]]()
    own = dataclasses.replace(tiny(), mcmc=dataclasses.replace(tiny().mcmc, kernel="my_kernel:MyKernel"))
    timm = dataclasses.replace(tiny_unet(), model=dataclasses.replace(tiny().model, network="timm:resnet18"))
    for experiment in (own, timm):
        known_step_cost(costs, experiment, num_workers=1, engine=EngineConfig())
    # All ranks of this start have them.
    assert len(costs) == 2 and worth_keeping(costs) == {}


def limited(gib: float) -> EngineConfig:
    return EngineConfig(memory_gib=gib)


def _fitted(rank: int, world_size: int, folder: Path, gib: float, network: str | None = None) -> None:
    traced = 0

    def trace(experiment: Experiment, *, num_workers: int, engine: EngineConfig) -> StepCost:
        nonlocal traced
        traced += 1
        return step_cost(experiment, num_workers=num_workers, engine=engine)

    traced_costs.step_cost = trace
    kept = KeptCosts(str(folder), is_first=rank == 0, share=lambda content: broadcast(CPU, content))
    try:
        experiment = tiny(batch_size=8)
        if network is not None:
            sys.path.insert(0, str(ROOT / "docs/examples"))
            model = dataclasses.replace(experiment.model, network=network, options='{"width": 8}')
            experiment = dataclasses.replace(experiment, model=model)
        fit = fit_memory(experiment, limited(gib), num_workers=world_size, device=CPU, kept=kept)
        told, memory = fit.why, fit.engine.memory
    except UserError as error:
        told, memory = str(error), ""
    kept.write()
    (folder / f"{rank}.txt").write_text(json.dumps([traced, told, memory]))


@pytest.mark.slow
@pytest.mark.parametrize("gib", [PLENTY, LITTLE])
def test_the_first_rank_traces_for_all(gib: float, tmp_path: Path) -> None:
    counts = list[list[int]]()
    for _ in range(2):
        run_world(_fitted, 2, tmp_path, gib)
        first, other = (json.loads((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1))
        assert first[1:] == other[1:]
        assert "all at once" in first[1] if gib == PLENTY else "expected at least" in first[1]
        counts.append([first[0], other[0]])
    # At the second start, nobody does.
    assert counts[0][0] > 0 and counts[0][1] == 0 and counts[1] == [0, 0]


@pytest.mark.slow
def test_the_first_rank_traces_a_network_of_ones_own_for_all_in_each_start(tmp_path: Path) -> None:
    for _ in range(2):
        run_world(_fitted, 2, tmp_path, PLENTY, "my_network:MyNetwork")
        first, other = (json.loads((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1))
        assert first == [1, *other[1:]] and other[0] == 0 and "all at once" in first[1]
        assert not (tmp_path / STEP_COSTS).exists()


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    assert read_step_costs(str(tmp_path)) == {}
    costs = {"f00d": dataclasses.asdict(step_cost(tiny()))}
    write_step_costs(str(tmp_path), costs)
    assert read_step_costs(str(tmp_path)) == costs
