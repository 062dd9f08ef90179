"""How a step is fitted into memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.memory import measured
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.config.rules import check_run
from drl_dist.config.tree import EngineConfig, Experiment, RunConfig
from drl_dist.training.cost import StepCost, UntraceableError, count_flop, step_cost
from drl_dist.training.estimate import estimate
from drl_dist.training.memory import TENSORS_SHARE, fit_memory
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import batch, tiny
from tests.worlds import run_world

CPU = torch.device("cpu")
MIB = 2**20


def cost(experiment: Experiment, *, num_workers: int = 1, engine: EngineConfig) -> StepCost:
    """100 MiB of state; 10 MiB for each image of a chain, 20 of an update, 5 where activations are computed again."""
    share = experiment.train.batch_size // num_workers
    chain, update = (min(share, one or share) for one in (engine.chain_images, engine.update_images))
    again = engine.memory == "checkpointing"
    return StepCost(
        num_parameters=1,
        images_per_worker=share,
        chain_gradients=3,
        chain_flop=3000,
        update_flop=1300 if again else 1000,
        state_bytes=100 * MIB,
        chain_bytes=(100 + 10 * chain) * MIB,
        update_bytes=(100 + (5 if again else 20) * update) * MIB,
    )


def limited(mebibytes: int, **fields: Any) -> EngineConfig:
    """With so much for tensors."""
    return EngineConfig(memory_gib=(mebibytes + 0.25) / 1024 / TENSORS_SHARE, **fields)


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    asked: list[EngineConfig] = []

    def told(experiment: Experiment, *, num_workers: int = 1, engine: EngineConfig) -> StepCost:
        asked.append(engine)
        return cost(experiment, num_workers=num_workers, engine=engine)

    monkeypatch.setattr("drl_dist.training.traced_costs.step_cost", told)
    return asked


@pytest.mark.parametrize(
    ("mebibytes", "expected"),
    [
        (1380, ("plain", None, None)),
        # The chain of 64 images has room; of the update, half of them.
        (1379, ("slices", 64, 32)),
        (740, ("slices", 64, 32)),
        (739, ("slices", 32, 16)),
        (260, ("slices", 16, 8)),
        # Slices of eight images do not fit, unless their activations are computed again.
        (259, ("checkpointing", 8, 16)),
        (180, ("checkpointing", 8, 16)),
        (179, ("slices", 4, 2)),
        (120, ("slices", 2, 1)),
        (119, ("checkpointing", 1, 2)),
        (110, ("checkpointing", 1, 2)),
    ],
)
def test_the_cheapest_way_that_fits_is_chosen(
    mebibytes: int, expected: tuple[object, ...], costs: list[EngineConfig]
) -> None:
    fit = fit_memory(tiny(batch_size=64), limited(mebibytes), device=CPU)
    assert (fit.engine.memory, fit.engine.chain_images, fit.engine.update_images) == expected
    assert f" of {mebibytes} MiB for tensors" in fit.why and "\n" not in fit.why
    assert ("7.5 % more operations" in fit.why) == (expected[0] == "checkpointing")
    assert ("all at once would take 1380 MiB" in fit.why) == (expected[0] != "plain")


def test_a_captured_graph_keeps_its_memory_beside_the_update(costs: list[EngineConfig]) -> None:
    experiment = tiny(batch_size=64)
    # 640 MiB of the chain and 1280 of the update above the state.
    fits = [
        fit_memory(experiment, limited(mebibytes), device=None, has_graphs=True).engine.memory
        for mebibytes in (2020, 2019)
    ]
    assert fits == ["plain", "slices"]
    eager = limited(2019, cuda_graph=False)
    assert fit_memory(experiment, eager, device=None, has_graphs=True).engine.memory == "plain"


def test_slices_of_two_sizes_keep_two_graphs(costs: list[EngineConfig]) -> None:
    # 24 do not divide 64: slices of 22, 21 and 21 images, each size of which has a graph.
    for chain_images, update_images in ((24, 8), (32, 16)):
        engine = limited(820, memory="slices", chain_images=chain_images)
        found = fit_memory(tiny(batch_size=64), engine, device=None, has_graphs=True).engine
        assert (found.chain_images, found.update_images) == (chain_images, update_images)


def test_slices_of_few_images_are_not_traced_where_many_fit(costs: list[EngineConfig]) -> None:
    assert fit_memory(tiny(batch_size=64), limited(260), device=CPU).engine.chain_images == 16
    assert min(engine.chain_images or 64 for engine in costs) == 8


def test_images_are_drawn_beside_a_captured_graph(costs: list[EngineConfig]) -> None:
    # 900 MiB would do for the graph of 64 images and this update, but not for as many chains once more.
    engine = limited(920, memory="slices", update_images=8)
    assert fit_memory(tiny(batch_size=64), engine, device=None, has_graphs=True).engine.chain_images == 32


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """900 MiB are free, and of 700 that this process has taken, 400 are in use."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (900 * MIB, 9000 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700 * MIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 400 * MIB)


@pytest.mark.usefixtures("_gpu")
def test_what_a_process_holds_besides_is_not_free(costs: list[EngineConfig]) -> None:
    engine, gpu = EngineConfig(cuda_graph=False), torch.device("cuda")
    for held, free in ((100, 1300), (400, 1600)):
        fit = fit_memory(tiny(batch_size=64), engine, device=gpu, state_bytes=held * MIB)
        assert f" of {int(free * TENSORS_SHARE)} MiB for tensors" in fit.why


@pytest.mark.usefixtures("_gpu")
def test_parts_of_ones_own_that_need_a_gpu_are_trained_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(*_: object) -> StepCost:
        raise AssertionError("images that are not on a GPU")

    monkeypatch.setattr("drl_dist.training.cost._traced", traced)
    gpu, experiment = torch.device("cuda"), tiny()
    with pytest.raises(AssertionError):
        fit_memory(experiment, EngineConfig(), device=gpu)
    own = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, network="my_network:MyNetwork"))
    fit = fit_memory(own, EngineConfig(), device=gpu)
    assert fit.engine.memory == "plain" and "(images that are not on a GPU)" in fit.why


def test_workers_share_a_batch_and_what_is_given_stays(costs: list[EngineConfig]) -> None:
    experiment = tiny(batch_size=64)
    assert fit_memory(experiment, limited(740), num_workers=2, device=CPU).engine.memory == "plain"
    found = fit_memory(experiment, limited(260, memory="slices", chain_images=3), device=CPU).engine
    assert (found.memory, found.chain_images, found.update_images) == ("slices", 3, 8)
    found = fit_memory(experiment, limited(260, memory="checkpointing"), device=CPU).engine
    assert (found.memory, found.chain_images, found.update_images) == ("checkpointing", 16, 32)


def test_a_run_of_two_objectives_fits_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(experiment: Experiment, *, num_workers: int = 1, engine: EngineConfig) -> StepCost:
        made = cost(experiment, num_workers=num_workers, engine=engine)
        if experiment.optim.objective != "score_matching":
            return made
        return dataclasses.replace(made, update_bytes=made.update_bytes + 300 * MIB)

    monkeypatch.setattr("drl_dist.training.traced_costs.step_cost", told)
    experiment = dataclasses.replace(preset("digits", "unet"), train=tiny(batch_size=64).train)
    optim = dataclasses.replace(experiment.optim, first_objective="score_matching", first_objective_steps=1)
    experiment = dataclasses.replace(experiment, optim=optim)
    assert [fit_memory(experiment, limited(size), device=CPU).engine.memory for size in (1680, 1679)] == [
        "plain",
        "slices",
    ]


def test_nothing_is_estimated_where_nothing_is_to_be_chosen(costs: list[EngineConfig]) -> None:
    given = EngineConfig(memory="slices", chain_images=2, update_images=3)
    for engine in (EngineConfig(), EngineConfig(memory="plain"), given):
        fit = fit_memory(tiny(), engine, device=CPU)
        assert fit.why == "" and fit.engine.memory == ("slices" if engine is given else "plain")
    assert costs == []


def test_what_cannot_be_is_one_sentence(costs: list[EngineConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(batch_size=64)
    with pytest.raises(UserError, match=r"got auto with 104 MiB for tensors, expected at least 110 MiB, for chains"):
        fit_memory(experiment, limited(104), device=CPU)
    with pytest.raises(UserError, match=r"engine.memory: got slices with 119 MiB .* at least 120 MiB"):
        fit_memory(experiment, limited(119, memory="slices"), device=CPU)
    with pytest.raises(UserError, match=r"engine.memory: got slices, without a limit, .*--engine.memory-gib"):
        fit_memory(experiment, EngineConfig(memory="slices"), device=CPU)
    own = dataclasses.replace(experiment.model, network="my_network:MyNetwork")
    for engine, words in (
        (EngineConfig(chain_images=2), "chain_images: got 2, expected none beside engine.memory auto"),
        (EngineConfig(memory="slices", update_images=0), "update_images: got 0, expected none, or at least 1"),
        (EngineConfig(memory_gib=0.0), "memory_gib: got 0.0, expected none, or a positive number"),
        (EngineConfig(memory="checkpointing"), "memory: got checkpointing, expected another one for my_network"),
    ):
        given = dataclasses.replace(experiment, model=own) if engine.memory == "checkpointing" else experiment
        with pytest.raises(UserError, match=words):
            check_run(RunConfig(experiment=given, engine=engine), complete=False)
        with pytest.raises(UserError, match=words):
            fit_memory(given, engine, device=CPU)

    def untraceable(*_: object, **__: object) -> StepCost:
        raise UntraceableError("network mine", got="an operation", expected="others", remedy="leave it out")

    monkeypatch.setattr("drl_dist.training.traced_costs.step_cost", untraceable)
    # Asked for a limit, nobody can say whether it is kept.
    with pytest.raises(UntraceableError):
        fit_memory(experiment, limited(500), device=CPU)


def test_an_estimate_tells_what_is_chosen(costs: list[EngineConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drl_dist.training.estimate.step_cost", cost)
    run = RunConfig(experiment=tiny(batch_size=64), engine=limited(740))
    made = estimate(run)
    assert made.phases[0].cost.update_bytes == 740 * MIB
    assert any(line.startswith("memory: chains of 64 images and updates of 32 images at a") for line in made.lines())
    unknown = estimate(dataclasses.replace(run, use_gpu=True, engine=EngineConfig()))
    assert any("--engine.memory-gib tells here" in line for line in unknown.lines())
    assert not any(line.startswith("memory: ") for line in estimate(RunConfig(experiment=tiny())).lines())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["slices", "checkpointing"])
def test_each_way_takes_the_memory_that_is_said(way: Any) -> None:
    experiment = preset("fashion_mnist", "t6")
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, width=16, num_res_blocks=3, width_multipliers=(1, 2)),
        mcmc=dataclasses.replace(experiment.mcmc, num_chain_steps=2),
        train=dataclasses.replace(experiment.train, batch_size=32),
    )
    engine, plain = EngineConfig(memory=way, chain_images=8, update_images=8), step_cost(experiment)
    for part, found in measured(experiment, engine).items():
        assert found["estimated"] == pytest.approx(found["real"], rel=0.1), part
        assert found["estimated"] < 0.6 * (plain.chain_bytes if part == "chain" else plain.update_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["slices", "checkpointing"])
def test_each_way_makes_the_operations_that_are_said(way: Any) -> None:
    engine = EngineConfig(memory=way, chain_images=3, update_images=3, compile="never")
    step = TrainStep(TrainState.create(tiny()), tiny(), engine)
    told = step_cost(tiny(), engine=engine)
    assert told.flop == count_flop(lambda: step(batch(0)))
    assert told.chain_gradients == 3


def _fitted(rank: int, world_size: int, folder: Path) -> None:
    fit = fit_memory(tiny(batch_size=8), limited(50), num_workers=world_size, device=CPU)
    (folder / f"{rank}.txt").write_text(fit.why)


@pytest.mark.slow
def test_workers_whose_backend_is_for_gpus_alone_look_at_their_memory(tmp_path: Path) -> None:
    run_world(_fitted, 2, tmp_path, backend="cuda:gloo")
    alone = fit_memory(tiny(batch_size=8), limited(50), num_workers=2, device=CPU)
    assert alone.why and [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == [alone.why] * 2
