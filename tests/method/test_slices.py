"""A step in slices of its batch, or with activations that are computed again, is the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from drl_dist.common.batch import Batch
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.import_paths import NEEDS_NEGATIVES
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.ladder import NoiseLadder, Pairs
from drl_dist.diffusion.recovery import Levels
from drl_dist.energy import unet, wide_resnet
from drl_dist.training.objectives import OBJECTIVES, Outcome
from drl_dist.training.slices import draws_in, joined_draws, slices
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch, tiny, tiny_unet, waken
from tests.worlds import run_world

SLICED = dataclasses.replace(EAGER, memory="slices", chain_images=5, update_images=5)
"""Of 12 images: three slices of 4, though 5 do not divide them; of 11, slices of 4, 4 and 3."""


def changed(experiment: Experiment, part: str, **fields: object) -> Experiment:
    return dataclasses.replace(experiment, **{part: dataclasses.replace(getattr(experiment, part), **fields)})


def of_objective(name: str, network: Callable[[], Experiment] = tiny_unet) -> Experiment:
    return changed(changed(network(), "mcmc", top_level="conditional"), "optim", objective=name)


def unet_setting() -> Experiment:
    """Chains with a start by Tweedie's formula, whose curvature is measured and followed."""
    given = preset("digits", "unet")
    given = changed(given, "model", width=8, time_hidden_dim=16, time_embedding_dim=8)
    given = changed(given, "optim", first_objective=None, first_objective_steps=0)
    return changed(changed(given, "train", batch_size=12), "mcmc", step_adaptation="curvature")


def antithetic() -> Experiment:
    given = preset("digits", "t1k")
    given = changed(given, "model", width=8, time_hidden_dim=16, time_embedding_dim=8)
    return changed(given, "train", batch_size=12)


def labelled() -> Experiment:
    return dataclasses.replace(tiny(), condition=ConditionConfig(kind="class", names=("a", "b", "c")))


EXPERIMENTS: dict[str, Experiment] = {
    "wide_resnet": tiny(),
    "unet": tiny_unet(attention_resolutions=(4,)),
    "unequal chains": changed(tiny(), "mcmc", level_chain_steps=(1, 2, 3, 1, 2, 3)),
    "unet setting": unet_setting(),
    "antithetic": antithetic(),
    "labelled": labelled(),
    "normal_likelihood": of_objective("normal_likelihood"),
    "dsm": of_objective("dsm", tiny),
    "score_matching": of_objective("score_matching"),
}


def made(experiment: Experiment, engine: EngineConfig, dtype: torch.dtype = torch.float64) -> TrainStep:
    state = TrainState.create(experiment, dtype=dtype)
    waken(state)
    return TrainStep(state, experiment, engine)


def given_batch(experiment: Experiment, start: int = 0, size: int = 12) -> Batch:
    made = batch(start, size)
    return dataclasses.replace(made, labels=made.positions % 3) if experiment.condition.kind != "none" else made


def gradients(step: TrainStep) -> dict[str, Tensor]:
    named = step.state.network.named_parameters()
    return {name: value.grad.clone().contiguous() for name, value in named if value.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys() and any(bool(value.any()) for value in expected.values())
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance * scale, msg=name)


def test_slices_are_as_few_and_as_even_as_can_be() -> None:
    sizes = {
        at_once: [where.stop - where.start for where in slices(11, at_once)] for at_once in (None, 1, 4, 5, 6, 11, 99)
    }
    assert sizes == {None: [11], 1: [1] * 11, 4: [4, 4, 3], 5: [4, 4, 3], 6: [6, 5], 11: [11], 99: [11]}
    assert [where.start for where in slices(11, 4)] == [0, 4, 8]


def test_draws_of_slices_join_to_those_of_all() -> None:
    draws = torch.arange(22)
    parts = [draws_in(draws, 11, where) for where in slices(11, 4)]
    assert parts[0].tolist() == [0, 1, 2, 3, 11, 12, 13, 14]
    assert torch.equal(joined_draws(parts, [4, 4, 3]), draws)


@pytest.mark.parametrize("size", [12, 11])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_slices_have_the_gradient_of_the_batch(name: str, size: int) -> None:
    experiment = changed(EXPERIMENTS[name], "train", batch_size=size)
    whole, parts = made(experiment, EAGER), made(experiment, SLICED)
    expected, found = (step(given_batch(experiment, size=size)) for step in (whole, parts))
    assert_close(gradients(parts), gradients(whole), 1e-12)
    # What a step reports is of the whole batch, and so is what it follows.
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-12, atol=0)
    assert found.names == expected.names
    torch.testing.assert_close(found.per_level, expected.per_level, rtol=1e-9, atol=1e-9)
    for part, tensors in whole.state.tensors().items():
        assert_close({**parts.state.tensors()[part]}, tensors, 1e-7 if part != "optimizer" else 1e-12)


@pytest.mark.parametrize("name", ["wide_resnet", "unet"])
def test_slices_have_the_gradient_of_the_batch_in_single_precision(name: str) -> None:
    experiment = EXPERIMENTS[name]
    whole, parts = (made(experiment, engine, torch.float32) for engine in (EAGER, SLICED))
    for step in (whole, parts):
        step(given_batch(experiment))
    assert_close(gradients(parts), gradients(whole), 1e-5)


@pytest.mark.parametrize("name", ["wide_resnet", "unet setting", "antithetic"])
def test_chains_of_slices_end_where_those_of_the_batch_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = EXPERIMENTS[name]
    whole, parts = made(experiment, EAGER), made(experiment, SLICED)
    sizes, evaluate = list[int](), parts.gradients.evaluate
    monkeypatch.setattr(parts.gradients, "evaluate", lambda prepared, y: sizes.append(len(y)) or evaluate(prepared, y))
    expected, found = (step.negatives(given_batch(experiment)) for step in (whole, parts))
    assert set(sizes) == {4}
    assert expected[1] is not None and found[1] is not None
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-12)
    if expected[2] is not None:
        assert found[2] is not None
        torch.testing.assert_close(found[2].curvature(), expected[2].curvature(), rtol=1e-9, atol=0)


class OfTheBatch:
    """A loss that no mean over pairs is: the largest difference counts, over the spread of all outputs."""

    needs_negatives: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = False
    is_mean: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("energy",)

    def __init__(self, experiment: Experiment, ladder: NoiseLadder) -> None: ...

    def outcome(self, forward: nn.Module, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        assert y_neg is not None
        raw = forward(torch.cat([pairs.y_pos, y_neg]), pairs.level.repeat(2))
        positive, negative = raw.chunk(2)
        return Outcome((negative - positive).exp().sum().log() / raw.std(), {"energy": -positive.detach()})


class OfGradients(OfTheBatch):
    """The same of image gradients."""

    needs_gradient: ClassVar[bool] = True

    def outcome(self, forward: nn.Module, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        sizes = forward(pairs.y_pos, pairs.level).square().flatten(1).sum(1)
        return Outcome(sizes.square().mean().sqrt(), {"energy": sizes.detach()})


@pytest.mark.parametrize("kind", [OfTheBatch, OfGradients])
def test_a_loss_that_is_no_mean_over_pairs_is_that_of_the_batch(
    kind: type[OfTheBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDS_NEGATIVES, "batch", True)  # type: ignore[call-overload]
    monkeypatch.setitem(OBJECTIVES, "batch", kind)  # type: ignore[call-overload]
    experiment = changed(labelled(), "optim", objective="batch", loss_weight="none")
    whole, parts = made(experiment, EAGER), made(experiment, SLICED)
    expected, found = (step(given_batch(experiment)) for step in (whole, parts))
    assert_close(gradients(parts), gradients(whole), 1e-11)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(found.per_level, expected.per_level, rtol=1e-9, atol=1e-9)
    # The test would show nothing if the mean of the slices' losses were that of the batch.
    kind.is_mean = True
    wrong = made(experiment, SLICED)
    wrong(given_batch(experiment))
    kind.is_mean = False
    with pytest.raises(AssertionError):
        assert_close(gradients(wrong), gradients(whole), 1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["wide_resnet", "unet", "unet setting", "labelled", "score_matching"])
def test_activations_that_are_computed_again_give_the_same_bits(name: str, precision: str) -> None:
    experiment = EXPERIMENTS[name]
    plain = dataclasses.replace(EAGER, precision=precision)
    kept, again = (
        made(experiment, engine, torch.float32)
        for engine in (plain, dataclasses.replace(plain, memory="checkpointing"))
    )
    for start in (0, 12):
        for step in (kept, again):
            step(given_batch(experiment, start))
        for part, tensors in kept.state.tensors().items():
            for key, value in tensors.items():
                assert torch.equal(value, again.state.tensors()[part][key]), f"{part} {key}"


@pytest.mark.parametrize("name", ["wide_resnet", "unet"])
def test_blocks_are_computed_again_in_the_update_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = wide_resnet if name == "wide_resnet" else unet
    step, apply, calls = made(EXPERIMENTS[name], dataclasses.replace(EAGER, memory="checkpointing")), kind._apply, []
    monkeypatch.setattr(kind, "_apply", lambda *given: calls.append(1) or apply(*given))
    pairs, y_neg, meter = step.negatives(given_batch(step.experiment))
    blocks = sum(isinstance(module, kind.ResBlock) for module in step.state.network.modules())
    assert len(calls) == 3 * blocks
    calls.clear()
    step.backward(pairs, y_neg, meter)
    assert len(calls) == 2 * blocks


def one_rank(rank: int, world_size: int, folder: Path) -> None:
    experiment = tiny(batch_size=11)
    engine = dataclasses.replace(EAGER, memory="checkpointing", chain_images=4, update_images=4)
    step, exchanges, whole = made(experiment, EAGER if world_size == 1 else engine), list[int](), batch(0, 11)
    if isinstance(step.forward, DistributedDataParallel):

        def average(_, bucket):  # noqa: ANN001
            exchanges.append(bucket.index())
            work = distributed.all_reduce(bucket.buffer() / world_size, async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        # In place of DDP's own average.
        step.forward.register_comm_hook(None, average)
    step(Batch(whole.images[rank::world_size], whole.positions[rank::world_size]))
    assert len(exchanges) == len(set(exchanges)), "gradients are exchanged once a step"
    assert bool(exchanges) == (world_size > 1)
    save_file(gradients(step), folder / f"{world_size}-{rank}")


@pytest.mark.slow
def test_ranks_exchange_the_gradients_of_all_slices_once(tmp_path: Path) -> None:
    one_rank(0, 1, tmp_path)
    # Two share eleven images unevenly, in slices of 3 and 3, and of 3 and 2.
    run_world(one_rank, 2, tmp_path)
    alone = load_file(tmp_path / "1-0")
    for rank in range(2):
        assert_close(load_file(tmp_path / f"2-{rank}"), alone, 1e-12)
