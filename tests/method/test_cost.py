"""What a step is said to cost, against steps that are made."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.memory import measured
from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.energy.wide_resnet import WideResNet
from drl_dist.jobs.train.options import parse_train_options, tell_estimate
from drl_dist.training.cost import StepCost, count_flop, phases, step_cost, with_numbers
from drl_dist.training.estimate import Estimate, Phase
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.support import ROOT

pytestmark = pytest.mark.slow


def _tiny(setting: str, **mcmc: int) -> Experiment:
    experiment = preset("digits", setting)
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, width=8, time_hidden_dim=16, time_embedding_dim=8),
        mcmc=dataclasses.replace(experiment.mcmc, **mcmc),
        train=dataclasses.replace(experiment.train, batch_size=6),
    )


def _batch(count: int) -> Batch:
    return Batch(torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.arange(count))


def _own() -> Experiment:
    """The same with the example of a network of one's own."""
    given = _tiny("t6", num_chain_steps=4)
    model = dataclasses.replace(given.model, network="my_network:MyNetwork", options='{"width": 8}')
    return dataclasses.replace(given, model=model)


@pytest.mark.parametrize(
    ("experiment", "gradients"),
    [
        (_tiny("t6", num_chain_steps=5), 5),
        (_own(), 4),
        # One more gradient for the start by Tweedie's formula.
        (phases(_tiny("unet", num_chain_steps=2))[1][1], 3),
        (_tiny("t1k_dsm"), 0),
    ],
    ids=["t6", "own", "unet", "dsm"],
)
def test_the_operations_are_those_of_a_step(
    experiment: Experiment, gradients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    experiment = with_numbers(experiment)
    cost = step_cost(experiment)
    state = TrainState.create(experiment)
    step = TrainStep(state, experiment, EngineConfig(compile="never"))
    assert cost.flop == count_flop(lambda: step(_batch(6)))
    assert cost.chain_gradients == gradients
    assert cost.num_parameters == sum(parameter.numel() for parameter in state.network.parameters())
    held = state.tensors()
    # But for the moments of a bias that score matching does not use.
    assert cost.state_bytes == pytest.approx(
        sum(value.nbytes for part in held.values() for value in part.values()), rel=1e-3
    )


def test_a_run_has_a_phase_for_each_objective() -> None:
    both = phases(_tiny("unet"))
    assert [alone.optim.objective for _, alone in both] == ["score_matching", "recovery"]
    assert sum(steps for steps, _ in both) == _tiny("unet").train.num_steps
    assert [steps for steps, _ in phases(_tiny("t6"))] == [_tiny("t6").train.num_steps]


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_the_memory_is_that_of_a_step(activation: str) -> None:
    experiment = preset("fashion_mnist", "t6")
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, activation=activation, width_multipliers=(1, 2)),
        mcmc=dataclasses.replace(experiment.mcmc, num_chain_steps=3),
        train=dataclasses.replace(experiment.train, batch_size=8),
    )
    for part, found in measured(experiment).items():
        assert found["estimated"] == pytest.approx(found["real"], rel=0.1), part


@pytest.mark.parametrize("objective", ["recovery", "score_matching"])
def test_the_memory_of_a_network_of_ones_own_is_that_of_a_step(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/examples"))
    experiment = dataclasses.replace(_own(), train=dataclasses.replace(_own().train, batch_size=32))
    experiment = dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, objective=objective))
    for part, found in measured(experiment).items():
        assert found["estimated"] == pytest.approx(found["real"], rel=0.1), part


def test_a_network_that_looks_at_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(prepared: object, y: Tensor) -> Tensor:
        return y.flatten(1).sum(1) * float(y.max())

    monkeypatch.setattr(WideResNet, "evaluate", staticmethod(evaluate))
    with pytest.raises(UserError, match=r"network wide_resnet: got an operation whose result depends on numbers"):
        step_cost(_tiny("t6"))


def test_the_command_tells_epochs_of_its_data_or_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "images.npy", np.zeros((64, 1, 8, 8), np.uint8))
    cost = StepCost(
        num_parameters=1, images_per_worker=32, chain_gradients=1, chain_flop=1, update_flop=1, state_bytes=1,
        chain_bytes=1, update_bytes=1,
    )  # fmt: skip
    monkeypatch.setattr("drl_dist.training.estimate.step_cost", lambda *_, **__: cost)
    words = ["--setting", "t6", "--without-ray", "--data", str(tmp_path / "images.npy")]
    run, options = parse_train_options("digits", [*words, "--tflops", "2"])
    assert options.dry_run
    tell_estimate(run, options)
    assert "data: 64 images, 2 steps an epoch, 500 epochs in 1000 steps" in capsys.readouterr().err
    run, options = parse_train_options("digits", ["--setting", "t6", "--data", str(tmp_path / "none"), "--estimate"])
    tell_estimate(run, options)
    told = capsys.readouterr()
    assert "data: steps of an epoch are not known (data " in told.err and "missing folder" in told.err
    assert told.out == ""
    with pytest.raises(UserError, match="--tflops: got 0"):
        parse_train_options("digits", ["--tflops", "0"])


@pytest.mark.parametrize(("out", "err"), [(True, True), (False, True), (True, False)])
def test_the_estimate_is_offered_in_a_terminal_alone(
    out: bool, err: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: out)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: err)
    tell_estimate(*parse_train_options("digits", ["--dry-run"]))
    said = "--estimate also tells parameters, FLOP, memory, epochs and hours\n"
    assert capsys.readouterr().err == (said if out and err else "")


def test_workers_share_the_images_and_the_lines_tell_all() -> None:
    cost = step_cost(_tiny("t6", num_chain_steps=3), num_workers=4)
    assert cost.images_per_worker == 2
    made = Estimate(phases=(Phase(objective="recovery", steps=1, cost=cost),), num_workers=4, batch_size=6)
    assert made.flop == 4 * cost.flop
    rate = cost.flop / 1e12 / 7200
    network, step, memory, data, total = made.lines(tflops=rate, num_images=1)
    assert network.endswith("parameters")
    assert step.startswith("step of 2 images on each worker: 3 gradients of the chain and 1 forward of the update, ")
    assert memory.startswith("memory of a worker's tensors: ")
    assert data == "data: 1 image, 0.1667 steps an epoch, 6 epochs in 1 step"
    assert total.startswith("run: 1 step, ") and f", 2 h 00 min at {rate:g} TFLOP/s on each worker" in total
