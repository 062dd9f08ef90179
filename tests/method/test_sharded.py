"""A state in shares is the state: two and three ranks train, save, resume and sample as with whole copies."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from benchmarks.memory import measured
from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.presets import preset
from drl_dist.config.rules import check_run
from drl_dist.config.tree import EngineConfig, Experiment, RunConfig
from drl_dist.diffusion.ladder import Pairs
from drl_dist.diffusion.recovery import Levels
from drl_dist.training.cost import step_cost
from drl_dist.training.memory import fit_memory
from drl_dist.training.objectives import Outcome
from drl_dist.training.own_parts import check_own_parts
from drl_dist.training.sharded import ShardedState, sharded, share_bytes
from drl_dist.training.state import Parts, TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch, tiny, tiny_unet, waken
from tests.worlds import run_world

SHARDED = dataclasses.replace(EAGER, shard=True)
IN_SLICES = {"chain_images": 4, "update_images": 2}
STEPS = 4


def switching() -> Experiment:
    """Labels, an image gradient without every weight first, and gradients that are clipped."""
    given = tiny_unet(attention_resolutions=(4,))
    optim = dataclasses.replace(
        given.optim, first_objective="score_matching", first_objective_steps=2, max_grad_norm=0.5, warmup_steps=1
    )
    return dataclasses.replace(given, optim=optim, condition=ConditionConfig(kind="class", names=("a", "b", "c")))


class OneRow(nn.Module):
    """A network of one's own with a weight of a single row, which one rank alone has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.time = nn.Linear(1, 8)
        self.first, self.head = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        hidden = self.first(y) + self.time(level[:, None].to(y.dtype) / 6)[:, :, None, None]
        return (y * self.head(nn.functional.silu(hidden))).sum((1, 2, 3)) - 0.5 * y.square().sum((1, 2, 3))


class OfTheBatch:
    """A loss that is no mean over pairs."""

    needs_negatives: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("energy",)

    def outcome(self, forward: nn.Module, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        assert y_neg is not None
        positive, negative = forward(torch.cat([pairs.y_pos, y_neg]), pairs.level.repeat(2)).chunk(2)
        return Outcome((negative - positive).div(9).exp().sum().log(), {"energy": -positive.detach()})


def own_parts() -> Experiment:
    given = tiny_unet(network=f"{__name__}:OneRow")
    return dataclasses.replace(given, optim=dataclasses.replace(given.optim, objective=f"{__name__}:OfTheBatch"))


EXPERIMENTS = {"wide_resnet": tiny(), "switching": switching(), "own parts": own_parts()}


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


def named(network: nn.Module) -> dict[str, nn.Parameter]:
    return dict(network.named_parameters())


def flat(parts: Parts) -> dict[str, Tensor]:
    return {f"{part}:{name}": value.contiguous() for part, some in parts.items() for name, value in some.items()}


def count_exchanges(rank: int, world_size: int) -> None:
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather_single", "reduce_scatter_single"):
            original = getattr(distributed, name)

            def counted(*given: Any, original: Any = original, name: str = name, **options: Any) -> Any:
                counts[name] += 1
                return original(*given, **options)

            patch.setattr(distributed, name, counted)
        for name, experiment in EXPERIMENTS.items():
            step = begun(experiment, dataclasses.replace(SHARDED, memory="slices", **IN_SLICES))
            counts.clear()
            make_steps(step, 2, rank, world_size)
            assert counts == {"all_gather_single": 2, "reduce_scatter_single": 2}, f"{name}: {counts}"
            # Until the next step each rank has its rows alone.
            assert all(isinstance(value, DTensor) for value in step.state.network.parameters())


@pytest.mark.slow
def test_weights_and_gradients_are_exchanged_once_a_step() -> None:
    run_world(count_exchanges, 2)


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
    # A run with labels that starts from one without: what labels add has no moments yet.
    plain = begun(dataclasses.replace(experiment, condition=ConditionConfig()), EAGER)
    make_steps(plain, middle, rank, world_size)
    half = saved(plain)
    for way, engine in {"labels": EAGER, "labels then sharded": SHARDED}.items():
        labelled = begun(experiment, engine, half, middle)
        make_steps(labelled, STEPS, rank, world_size)
        ends[way] = saved(labelled)
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


class OneNumber(OneRow):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return self.scale * super().forward(y, level)


def test_weights_that_cannot_be_divided_are_refused() -> None:
    experiment = tiny_unet(network=f"{__name__}:OneNumber")
    check_own_parts(experiment, EAGER)
    why = f"engine.shard: got true with {__name__}:OneNumber, whose module.scale is a single number, expected weights"
    with pytest.raises(UserError, match=why):
        check_own_parts(experiment, SHARDED)
    with pytest.raises(UserError, match=why):
        step_cost(experiment, num_workers=2, engine=SHARDED)


def test_one_worker_has_nobody_to_share_with() -> None:
    words = "engine.shard: got true, expected false with one worker"
    with pytest.raises(UserError, match=words):
        check_run(RunConfig(experiment=tiny(), engine=SHARDED), complete=False)
    check_run(RunConfig(experiment=tiny(), engine=SHARDED, num_workers=2, min_workers=1), complete=False)
    with pytest.raises(UserError, match=words):
        fit_memory(tiny(), SHARDED)


def measure(rank: int, world_size: int, folder: Path) -> None:
    experiment = preset("digits", "t6")
    experiment = dataclasses.replace(
        experiment,
        mcmc=dataclasses.replace(experiment.mcmc, num_chain_steps=2),
        train=dataclasses.replace(experiment.train, batch_size=2 * world_size),
    )
    found = measured(experiment, EngineConfig(shard=True))
    whole = step_cost(experiment, num_workers=world_size)
    # Instead of four whole parts, of the weights' size each, there are four shares and the gathered weights.
    saved = whole.state_bytes * (3 / 4 - 1 / world_size)
    assert found["update"]["real"] == pytest.approx(whole.update_bytes - saved, rel=0.1)
    assert found["update"]["real"] < whole.update_bytes - 0.7 * saved
    if rank == 0:
        assert found["state"]["real"] < whole.state_bytes * 1.02 / world_size
        for part, sizes in found.items():
            assert sizes["estimated"] == pytest.approx(sizes["real"], rel=0.1 if part != "state" else 1e-3), part


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_take_the_memory_that_is_said(world_size: int, tmp_path: Path) -> None:
    run_world(measure, world_size, tmp_path)


def train_in_all_ways(rank: int, world_size: int, folder: Path, name: str) -> None:
    experiment = EXPERIMENTS[name]
    in_slices = {"memory": "checkpointing" if experiment.model.is_built_in else "slices", **IN_SLICES}
    for way, engine in {
        "ddp": EAGER,
        "sharded": SHARDED,
        "ddp in slices": dataclasses.replace(EAGER, **in_slices),
        "sharded in slices": dataclasses.replace(SHARDED, **in_slices),
    }.items():
        step = begun(experiment, engine)
        numbers = make_steps(step, STEPS, rank, world_size)
        parts, averaged = saved(step), step.state.ema_network().state_dict()
        found = flat(parts | {"averaged": dict(averaged)}) | {"numbers": torch.stack(numbers)}
        save_file(found, folder / f"{way}-{rank}")
        if isinstance(step.state, ShardedState) and rank == 0:
            network = TrainState.create(experiment).network
            rest = sum(value.nbytes for name, value in network.state_dict().items() if name not in named(network))
            counts = sum(value.nbytes for key, value in parts["optimizer"].items() if key.endswith("/step"))
            assert step.state.num_bytes == 4 * share_bytes(network, world_size) + 2 * rest + counts


@pytest.mark.slow
@pytest.mark.parametrize(("name", "world_size"), [("wide_resnet", 3), ("switching", 2), ("own parts", 2)])
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
