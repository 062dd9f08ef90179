"""One, two, four and five processes make the same step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from drl_dist.common.batch import Batch
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.tree import EngineConfig
from drl_dist.training.guard import DivergedError
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import batch, tiny, tiny_unet, waken
from tests.worlds import run_world

ENGINE = EngineConfig(compile="never", cuda_graph=False)


def one_rank(rank: int, world_size: int, folder: Path, poison: bool) -> None:
    state = TrainState.create(tiny(), dtype=torch.float64)
    waken(state)
    step = TrainStep(state, tiny(), ENGINE)
    whole = batch(0)
    mine = Batch(whole.images[rank::world_size], whole.positions[rank::world_size])
    if poison and rank == world_size - 1:
        # One rank alone draws an infinite image.
        original = step.run_chain
        step.run_chain = lambda *given: original(*given) * float("inf")  # type: ignore[method-assign]
    try:
        result = step(mine)
    except DivergedError:
        assert poison
        (folder / f"stopped-{rank}").touch()
        unchanged = TrainState.create(tiny(), dtype=torch.float64)
        waken(unchanged)
        for name, value in unchanged.network.named_parameters():
            assert torch.equal(value, dict(state.network.named_parameters())[name])
        return
    gradients = {
        name: value.grad.contiguous() for name, value in state.network.named_parameters() if value.grad is not None
    }
    save_file(
        gradients | {"loss": result.loss.clone(), "per_level": result.per_level.clone()},
        folder / f"{world_size}-{rank}.safetensors",
    )


@pytest.mark.slow
def test_worlds_of_any_size_have_equal_gradients(tmp_path: Path) -> None:
    # Five share the batch unevenly.
    assert len(batch(0).positions) % 5 != 0
    # One process needs no world.
    one_rank(0, 1, tmp_path, poison=False)
    for world_size in (2, 4, 5):
        run_world(one_rank, world_size, tmp_path, False)
    alone = load_file(tmp_path / "1-0.safetensors")
    assert any(value.abs().max() > 1e-3 for name, value in alone.items() if name.endswith("conv_2.weight"))
    for world_size in (2, 4, 5):
        for rank in range(world_size):
            together = load_file(tmp_path / f"{world_size}-{rank}.safetensors")
            assert together.keys() == alone.keys()
            for name, value in alone.items():
                torch.testing.assert_close(together[name], value, rtol=1e-6, atol=1e-6, msg=f"{world_size} {name}")


def switching_rank(rank: int, world_size: int, folder: Path) -> None:
    experiment = tiny_unet()
    schedule = dataclasses.replace(experiment.optim, first_objective="score_matching", first_objective_steps=2)
    condition = ConditionConfig(kind="class", names=("a", "b", "c"))
    experiment = dataclasses.replace(experiment, optim=schedule, condition=condition)
    state = TrainState.create(experiment, dtype=torch.float64)
    waken(state)
    step = TrainStep(state, experiment, ENGINE)
    for index in range(4):
        whole = batch(12 * index)
        mine = whole.positions[rank::world_size]
        step(Batch(whole.images[rank::world_size], mine, labels=mine % 3))
    assert bool(state.network.state_dict()["condition.table"].any())
    save_file({name: value.contiguous() for name, value in state.tensors()["weights"].items()}, folder / f"{rank}")


@pytest.mark.slow
def test_a_world_changes_its_objective_together(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    switching_rank(0, 1, tmp_path / "alone")
    run_world(switching_rank, 2, tmp_path)
    alone = load_file(tmp_path / "alone/0")
    for rank in range(2):
        for name, value in load_file(tmp_path / f"{rank}").items():
            torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-6, msg=f"{rank} {name}")


def rank_of_each_wrapper(rank: int, world_size: int, folder: Path) -> None:
    # Of the image gradient that dsm is about, the bias behind the last activation has no part.
    dsm = dataclasses.replace(
        tiny(),
        mcmc=dataclasses.replace(tiny().mcmc, top_level="conditional"),
        optim=dataclasses.replace(tiny().optim, objective="dsm"),
    )
    for name, experiment in {"recovery": tiny(), "dsm": dsm}.items():
        needs_search = name == "dsm"
        ways: dict[str, dict[str, Any] | None] = {
            "ours": None,
            "defaults": {"find_unused_parameters": needs_search},
            "static": {"static_graph": True, "gradient_as_bucket_view": True},
        }
        for way, options in ways.items():
            state = TrainState.create(experiment)
            waken(state)
            step = TrainStep(state, experiment, ENGINE)
            assert isinstance(step.forward, DistributedDataParallel)
            assert step.forward.gradient_as_bucket_view and step.forward.find_unused_parameters == needs_search
            if options is not None:
                step.forward = DistributedDataParallel(step.forward.module, **options)
            losses: list[Tensor] = []
            for index in range(3):
                whole = batch(12 * index)
                result = step(Batch(whole.images[rank::world_size], whole.positions[rank::world_size]))
                losses.append(result.loss)
            found = {
                key: value.clone()
                for key, value in (
                    *((f"weights {key}", value) for key, value in state.network.state_dict().items()),
                    *(
                        (f"gradient {key}", value.grad)
                        for key, value in state.network.named_parameters()
                        if value.grad is not None
                    ),
                )
            }
            save_file(
                {"losses": torch.stack(losses), **{key: value.contiguous() for key, value in found.items()}},
                folder / f"{name}-{way}-{rank}",
            )


@pytest.mark.slow
def test_how_gradients_are_exchanged_changes_no_bit(tmp_path: Path) -> None:
    run_world(rank_of_each_wrapper, 2, tmp_path)
    for name in ("recovery", "dsm"):
        expected = load_file(tmp_path / f"{name}-defaults-0")
        assert any(key.startswith("gradient") and bool(value.any()) for key, value in expected.items())
        for way in ("ours", "defaults", "static"):
            for rank in range(2):
                found = load_file(tmp_path / f"{name}-{way}-{rank}")
                assert found.keys() == expected.keys(), f"{name} {way}"
                for key, value in expected.items():
                    assert torch.equal(found[key], value), f"{name} {way} {rank} {key}"


@pytest.mark.slow
def test_one_bad_rank_stops_all_before_the_update(tmp_path: Path) -> None:
    run_world(one_rank, 2, tmp_path, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped-0", "stopped-1"]


def test_a_batch_of_another_world_is_noticed() -> None:
    # The test above would pass if ranks ignored their positions: they must matter.
    state = TrainState.create(dataclasses.replace(tiny()), dtype=torch.float64)
    step = TrainStep(state, tiny(), ENGINE)
    whole = batch(0)
    shifted = Batch(whole.images, whole.positions + 1)
    first, second = (step.draw(given.images, given.positions).x_noisy for given in (whole, shifted))
    assert not torch.equal(first, second)
