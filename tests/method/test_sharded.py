"""A state in shares is the state: two and three ranks train, save, resume and sample as with whole copies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from drl_dist.common.batch import Batch
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.sharded import ShardedState, sharded
from drl_dist.training.state import Parts, TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch, tiny, tiny_unet, waken
from tests.worlds import run_world

SHARDED = dataclasses.replace(EAGER, shard=True)
IN_SLICES = {"memory": "checkpointing", "chain_images": 4, "update_images": 2}
STEPS = 4


def switching() -> Experiment:
    """Labels, an image gradient without every weight first, and gradients that are clipped."""
    given = tiny_unet(attention_resolutions=(4,))
    optim = dataclasses.replace(
        given.optim, first_objective="score_matching", first_objective_steps=2, max_grad_norm=0.5, warmup_steps=1
    )
    return dataclasses.replace(given, optim=optim, condition=ConditionConfig(kind="class", names=("a", "b", "c")))


EXPERIMENTS = {"wide_resnet": tiny(), "switching": switching()}


def begun(experiment: Experiment, engine: EngineConfig, parts: Parts | None = None, step: int = 0) -> TrainStep:
    state = TrainState.create(experiment)
    waken(state)
    if parts is not None:
        state.load_tensors(parts, step)
    return TrainStep(sharded(state, experiment) if engine.shard else state, experiment, engine)


def make_steps(step: TrainStep, until: int, rank: int, world_size: int) -> list[Tensor]:
    """Loss and gradient norm of each step up to one."""
    numbers: list[Tensor] = []
    for index in range(step.state.step, until):
        whole = batch(12 * index)
        mine = whole.positions[rank::world_size]
        labels = mine % 3 if step.experiment.condition.kind != "none" else None
        result = step(Batch(whole.images[rank::world_size], mine, labels=labels))
        numbers.append(torch.stack([result.loss, result.grad_norm]))
    return numbers


def saved(step: TrainStep) -> Parts:
    """The checkpoint of the first rank, on every rank; all ranks call this."""
    held: list[Parts] = [
        {part: {name: value.clone() for name, value in some.items()} for part, some in step.state.tensors().items()}
    ]
    distributed.broadcast_object_list(held)
    return held[0]


def flat(parts: Parts) -> dict[str, Tensor]:
    return {f"{part}:{name}": value.contiguous() for part, some in parts.items() for name, value in some.items()}


def resume_in_all_ways(rank: int, world_size: int, folder: Path) -> None:
    experiment, middle = EXPERIMENTS["switching"], STEPS - 1
    ends: dict[str, Parts] = {}
    for way, engine in {"ddp": EAGER, "sharded": SHARDED}.items():
        step = begun(experiment, engine)
        make_steps(step, middle, rank, world_size)
        half = saved(step)
        make_steps(step, STEPS, rank, world_size)
        ends[way] = saved(step)
        # Files are read in an order of each rank's own.
        half = {part: dict(sorted(some.items(), reverse=rank == 1)) for part, some in half.items()}
        for then, other in {"ddp": EAGER, "sharded": SHARDED}.items():
            resumed = begun(experiment, other, half, middle)
            assert resumed.state.step == middle
            make_steps(resumed, STEPS, rank, world_size)
            ends[f"{way} then {then}"] = saved(resumed)
    if rank == 0:
        for way, parts in ends.items():
            save_file(flat(parts), folder / way)


@pytest.mark.slow
def test_a_run_goes_on_in_shares_and_without(tmp_path: Path) -> None:
    run_world(resume_in_all_ways, 2, tmp_path)
    ends = {path.name: load_file(path) for path in tmp_path.iterdir()}
    for way, parts in ends.items():
        first, _, then = way.partition(" then ")
        assert parts.keys() == ends[first].keys()
        for key, value in ends[first].items():
            if then == first:
                assert torch.equal(parts[key], value), f"{way} {key}"
            torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-6, msg=f"{way} {key}")


def train_in_all_ways(rank: int, world_size: int, folder: Path, name: str) -> None:
    experiment = EXPERIMENTS[name]
    for way, engine in {
        "ddp": EAGER,
        "sharded": SHARDED,
        "ddp in slices": dataclasses.replace(EAGER, **IN_SLICES),
        "sharded in slices": dataclasses.replace(SHARDED, **IN_SLICES),
    }.items():
        step = begun(experiment, engine)
        numbers = make_steps(step, STEPS, rank, world_size)
        parts, averaged = saved(step), step.state.ema_network().state_dict()
        found = flat(parts | {"averaged": dict(averaged)}) | {"numbers": torch.stack(numbers)}
        save_file(found, folder / f"{way}-{rank}")
        if isinstance(step.state, ShardedState):
            weights = sum(value.nbytes for value in parts["weights"].values())
            # All of it, and a copy for each rank of the small rest that is no parameter.
            assert step.state.num_bytes < 4 * weights / world_size * 1.3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "world_size"), [("wide_resnet", 3), ("switching", 2)])
def test_shares_train_as_whole_copies_do(name: str, world_size: int, tmp_path: Path) -> None:
    run_world(train_in_all_ways, world_size, tmp_path, name)
    for way in ("", " in slices"):
        for rank in range(world_size):
            expected, found = (load_file(tmp_path / f"{kind}{way}-{rank}") for kind in ("ddp", "sharded"))
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert found[key].shape == value.shape
                torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=f"{way} {key}")
            # The test would show nothing if the steps were too small to be seen.
            start = flat(begun(EXPERIMENTS[name], EAGER).state.tensors())
            assert any((value - start[key]).abs().max() > 1e-4 for key, value in expected.items() if key in start)
