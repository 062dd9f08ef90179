"""The fast training step gives the numbers of the plain one."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drl_dist.config.tree import EngineConfig, Experiment, OptimConfig, TrainConfig
from drl_dist.energy.layers import Layer
from drl_dist.training.chain import GradientEngine
from drl_dist.training.guard import DivergedError
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep, learning_rate_at
from tests.helpers.steps import EAGER, batch, tiny, tiny_unet, waken
from tests.reference import ReferenceStep


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_three_steps_equal_the_plain_reference(dtype: torch.dtype, tolerance: float) -> None:
    experiment = tiny()
    state = TrainState.create(experiment, dtype=dtype)
    waken(state)
    reference = ReferenceStep(state.network.state_dict(), experiment)
    step = TrainStep(state, experiment, EAGER)
    for index in range(3):
        given = batch(100 * index)
        result = step(given)
        loss, _ = reference(given.images, given.positions)
        assert float(result.loss) == pytest.approx(loss, rel=tolerance * 10, abs=tolerance)
    for name, value in state.network.state_dict().items():
        torch.testing.assert_close(value, reference.weights[name].detach(), rtol=tolerance, atol=tolerance, msg=name)
        torch.testing.assert_close(state.ema.shadow[name], reference.ema[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_chain_equals_the_plain_reference(dtype: torch.dtype, tolerance: float) -> None:
    experiment = tiny()
    state = TrainState.create(experiment, dtype=dtype)
    waken(state)
    reference = ReferenceStep(state.network.state_dict(), experiment)
    step = TrainStep(state, experiment, EAGER)
    given = batch(7)
    pairs = step.draw(given.images, given.positions)
    level, y_pos, x_noisy = reference.draw(given.images, given.positions)
    assert torch.equal(pairs.level, level)
    torch.testing.assert_close(pairs.y_pos, y_pos, rtol=0, atol=tolerance)
    torch.testing.assert_close(pairs.x_noisy, x_noisy, rtol=0, atol=tolerance)
    y_neg = step.run_chain(pairs, given.positions)
    torch.testing.assert_close(y_neg, reference.run_chain(level, x_noisy, given.positions), rtol=0, atol=tolerance)


def test_a_step_takes_exactly_k_image_gradients_and_one_update(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny()
    step = TrainStep(TrainState.create(experiment), experiment, EAGER)
    evaluated: list[tuple[int, bool]] = []
    original = step.gradients.evaluate

    def counting(prepared, y):  # noqa: ANN001
        evaluated.append((len(y), prepared.stem[0].requires_grad))
        return original(prepared, y)

    monkeypatch.setattr(step.gradients, "evaluate", counting)
    step(batch(0))
    # K evaluations whose weights carry no history, then y_pos and y_neg together with weights that do.
    assert evaluated == [(12, False)] * 3 + [(24, True)]


def test_power_iteration_advances_once_per_step() -> None:
    experiment = tiny()
    state = TrainState.create(experiment)
    before = state.network.stem.u.clone()
    expected = state.network.stem.weight.detach().flatten(1).clone()
    TrainStep(state, experiment, EAGER)(batch(0))
    v = torch.nn.functional.normalize(expected.mT @ before, dim=0)
    torch.testing.assert_close(state.network.stem.u, torch.nn.functional.normalize(expected @ v, dim=0))


def test_a_resumed_run_is_bit_identical() -> None:
    experiment = tiny()
    straight = TrainState.create(experiment)
    step = TrainStep(straight, experiment, EAGER)
    for index in range(4):
        step(batch(12 * index))

    first = TrainState.create(experiment)
    step = TrainStep(first, experiment, EAGER)
    for index in range(2):
        step(batch(12 * index))
    saved = {
        part: {name: value.clone().contiguous() for name, value in tensors.items()}
        for part, tensors in first.tensors().items()
    }
    second = TrainState.create(experiment)
    second.load_tensors(saved, first.step)
    step = TrainStep(second, experiment, EAGER)
    for index in range(2, 4):
        step(batch(12 * index))

    for part, tensors in straight.tensors().items():
        for name, value in tensors.items():
            assert torch.equal(value, second.tensors()[part][name]), f"{part} {name}"


def scheduled(**optim: object) -> Experiment:
    """Two steps of score matching, then recovery at a tenth of the learning rate."""
    experiment, schedule = tiny_unet(), {"first_objective": "score_matching", "first_objective_steps": 2}
    optim = schedule | {"switch_rate_factor": 0.1, "warmup_steps": 1, **optim}
    return dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, **optim))


def test_a_run_changes_its_objective_at_the_step_that_its_schedule_says() -> None:
    experiment = scheduled()
    step = TrainStep(TrainState.create(experiment), experiment, EAGER)
    numbers = [step(batch(12 * index)).metrics() for index in range(4)]
    reported = [{name.split("/")[0] for name in one if "/" in name} for one in numbers]
    assert reported[0] == reported[1] == {"predicted_noise", "noise_error"}
    assert reported[2] == reported[3] == {"log_density_pos", "log_density_neg", "log_density_gap", "displacement"}
    assert [one["learning_rate"] for one in numbers] == pytest.approx([1.5e-3, 1.5e-3, 1.5e-4, 1.5e-4])


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_resumed_before_at_or_after_the_switch_is_bit_identical(stop: int) -> None:
    experiment = scheduled()
    straight = TrainState.create(experiment)
    step = TrainStep(straight, experiment, EAGER)
    saved: dict[str, dict[str, Tensor]] = {}
    for index in range(4):
        if index == stop:
            saved = {part: {n: v.clone() for n, v in tensors.items()} for part, tensors in straight.tensors().items()}
        step(batch(12 * index))
    resumed = TrainState.create(experiment)
    resumed.load_tensors(saved, stop)
    step = TrainStep(resumed, experiment, EAGER)
    for index in range(stop, 4):
        step(batch(12 * index))
    for part, tensors in straight.tensors().items():
        for name, value in tensors.items():
            assert torch.equal(value, resumed.tensors()[part][name]), f"{part} {name}"


@pytest.mark.slow
def test_averaged_weights_are_sampled_from_with_norms_of_their_own() -> None:
    # A learning rate at which the singular vectors turn, so that their average is much shorter than 1.
    experiment = tiny()
    experiment = dataclasses.replace(
        experiment, optim=dataclasses.replace(experiment.optim, learning_rate=0.03, warmup_steps=1, ema_decay=0.95)
    )
    state = TrainState.create(experiment)
    step = TrainStep(state, experiment, EAGER)
    for index in range(40):
        step(batch(12 * index))
    shortest = min(float(value.norm()) for name, value in state.ema.shadow.items() if name.endswith(".u"))
    assert shortest < 0.9, "the vectors did not turn: no test"
    network = state.ema_network()
    layers = [layer for layer in network.modules() if isinstance(layer, Layer) and layer.spectral_norm == "unit"]
    assert len(layers) > 5
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.effective()[0].flatten(1), ord=2)
        assert float(largest) == pytest.approx(1, rel=0.02)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_state_of_another_network_is_refused() -> None:
    experiment = tiny()
    state = TrainState.create(experiment)
    parts = state.tensors()
    parts["ema"].pop("stem.weight")
    with pytest.raises(ValueError, match=r"stem.weight"):
        state.load_tensors(parts, 0)


class PartlyMoved(nn.Module):
    """A weight that is frozen, and one that no image gradient depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(1, 4, 3, padding=1).requires_grad_(False)
        self.head, self.offset = nn.Conv2d(4, 1, 1), nn.Embedding(6, 1)

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.frozen(y))
        return self.head(hidden).square().sum((1, 2, 3)) - y.square().sum((1, 2, 3)) + self.offset(t)[:, 0]


def test_weights_that_have_no_moments_yet_or_never_have_any_resume() -> None:
    experiment = tiny_unet(network=f"{__name__}:PartlyMoved")
    schedule = {"first_objective": "score_matching", "first_objective_steps": 2, "warmup_steps": 1}
    experiment = dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, **schedule))
    state = TrainState.create(experiment)
    step = TrainStep(state, experiment, EAGER)
    step(batch(0))
    saved = {part: {n: v.clone() for n, v in tensors.items()} for part, tensors in state.tensors().items()}
    have_moments = {name.partition("/")[0] for name in saved["optimizer"]}
    assert have_moments == {"module.head.weight", "module.head.bias"}
    again = TrainState.create(experiment)
    again.load_tensors(saved, 1)
    resumed = TrainStep(again, experiment, EAGER)
    for index in (1, 2):
        step(batch(12 * index))
        resumed(batch(12 * index))
    ends = again.tensors()
    for part, tensors in state.tensors().items():
        assert ends[part].keys() == tensors.keys()
        assert all(torch.equal(value, ends[part][name]) for name, value in tensors.items()), part
    assert "module.offset.weight/exp_avg" in ends["optimizer"]
    ends["optimizer"]["nonesuch/step"] = torch.ones(())
    with pytest.raises(ValueError, match="nonesuch"):
        again.load_tensors(ends, 3)


def test_nothing_is_updated_when_the_gradient_is_not_finite() -> None:
    experiment = tiny()
    state = TrainState.create(experiment)
    step = TrainStep(state, experiment, EAGER)
    with torch.no_grad():
        state.network.head.bias[0] = float("inf")
    before = {name: value.clone() for name, value in state.network.named_parameters()}
    with pytest.raises(DivergedError, match="step 0"):
        step(batch(0))
    assert state.step == 0
    for name, value in state.network.named_parameters():
        assert torch.equal(value, before[name])


def test_the_learning_rate_warms_up_and_then_stays_halves_or_falls_along_a_cosine() -> None:
    def rates(steps: Sequence[int], **fields: Any) -> list[float]:
        optim = OptimConfig(learning_rate=0.8, warmup_steps=4, **fields)
        experiment = dataclasses.replace(tiny(), optim=optim, train=TrainConfig(num_steps=300))
        return [learning_rate_at(experiment, step) for step in steps]

    assert rates((0, 1, 3, 4, 1000)) == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])
    assert rates((0, 3, 13, 23), half_life_steps=10) == pytest.approx([0.2, 0.8, 0.4, 0.2])
    # Half of the cosine at half of the steps; behind the last step nothing falls any further.
    assert rates((0, 100, 150, 200, 300, 400), final_rate_factor=0.2) == pytest.approx(
        [0.2, 0.64, 0.48, 0.32, 0.16, 0.16]
    )


def test_metrics_are_means_over_the_samples_of_each_level() -> None:
    experiment = tiny()
    step = TrainStep(TrainState.create(experiment), experiment, EAGER)
    given = batch(0)
    pairs = step.draw(given.images, given.positions)
    y_neg = pairs.x_noisy + 0.5  # so every displacement is 0.5
    metrics = step.update(pairs, y_neg).metrics()
    present = set(pairs.level.tolist())
    assert {name for name in metrics if name.startswith("displacement")} == {f"displacement/level_{t}" for t in present}
    for t in present:
        assert metrics[f"displacement/level_{t}"] == pytest.approx(0.5, abs=1e-6)
        gap = metrics[f"log_density_pos/level_{t}"] - metrics[f"log_density_neg/level_{t}"]
        assert metrics[f"log_density_gap/level_{t}"] == pytest.approx(gap, rel=1e-3, abs=1e-2)


def test_bfloat16_keeps_chain_and_weights_in_float32_and_stays_close() -> None:
    experiment = tiny()
    given = batch(3)
    ends = {}
    for precision in ("float32", "bfloat16"):
        state = TrainState.create(experiment)
        waken(state)
        step = TrainStep(state, experiment, EngineConfig(precision=precision, compile="never", cuda_graph=False))
        pairs = step.draw(given.images, given.positions)
        ends[precision] = step.run_chain(pairs, given.positions)
        assert ends[precision].dtype == torch.float32
        step.update(pairs, ends[precision])
        assert state.network.stem.weight.dtype == torch.float32
    difference = (ends["float32"] - ends["bfloat16"]).abs().max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize(("capability", "warns"), [("AVX2", True), ("AVX512", False)])
def test_bfloat16_that_is_emulated_is_told(capability: str, warns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    network = TrainState.create(tiny()).network
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        GradientEngine(network, EngineConfig(precision="float32"))
        assert not told
        GradientEngine(network, EngineConfig(precision="bfloat16"))
    assert [str(warning.message)[:18] for warning in told] == (["precision bfloat16"] if warns else [])
