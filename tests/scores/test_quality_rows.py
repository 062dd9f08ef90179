"""Rows of ``python -m benchmarks.quality`` that train in ways of their own: with an initialiser, and with weights."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.quality.cooperative import CooperativeTrainee, Initialiser, Start, WithInitialiser
from benchmarks.quality.record import Record
from benchmarks.quality.settings import SETTINGS, Setting
from benchmarks.quality.trainees import Trainee, start, step_flop
from benchmarks.quality.weighted import MEASURE_EVERY, WeightedTrainee, factors, level_variances
from drl_dist.build import build_ladder, build_levels
from drl_dist.common.batch import Batch
from drl_dist.config.presets import preset
from drl_dist.diffusion.ladder import draw_pairs
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.energy.unet import apply_unet
from drl_dist.sampling.tweedie import Tweedie
from drl_dist.training import ema
from drl_dist.training.objectives import Outcome, ScoreMatching

SMALL: dict[str, dict[str, Any]] = {
    "model": {"width": 8, "time_embedding_dim": 8, "time_hidden_dim": 8},
    "train": {"batch_size": 40},
}
EXPERIMENT = preset("digits", "unet")
LADDER = build_ladder(EXPERIMENT.diffusion)
LEVELS = build_levels(EXPERIMENT, LADDER)
TOP = LEVELS.num_levels - 1


def small(name: str, **options: Any) -> Setting:
    setting = SETTINGS[name]
    overrides = {**setting.overrides, **SMALL}
    return dataclasses.replace(setting, overrides=overrides, options={**setting.options, **options})


def batch_at(position: int, count: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(position)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.arange(position, position + count))


def moved(network: Initialiser) -> Initialiser:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("patch_size", [1, 2])
def test_an_initialiser_begins_as_the_tweedie_start_of_white_data(patch_size: int) -> None:
    network = Initialiser(dataclasses.replace(EXPERIMENT.model, patch_size=patch_size), 8, LADDER, 0)
    # It sees the image in the squares that the energy sees.
    assert network.stem.weight.shape[1] == patch_size**2
    x, level = torch.randn(TOP + 1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(TOP + 1)
    variance = EXPERIMENT.model.data_std**2 * LADDER.cumulative_scale**2 + LADDER.cumulative_std**2
    exact = -x / variance[1:].float().reshape(-1, 1, 1, 1)
    assert torch.allclose(network.score(x, level), exact, rtol=1e-4)

    def raw_at(level: Tensor) -> Any:
        scale = LEVELS.transition_scale[level] ** 2 * variance[:-1][level]
        return lambda y: (torch.zeros(len(y)), -y / scale.float().reshape(-1, 1, 1, 1))

    normal = torch.randn_like(x)
    ours = Start(LEVELS, LADDER, network).draw(raw_at, x, level, normal)
    assert torch.allclose(ours, Tweedie(LEVELS, LADDER).draw(raw_at, x, level, normal), atol=1e-4)
    before = ours.clone()
    after = Start(LEVELS, LADDER, moved(network)).draw(raw_at, x, level, normal)
    # Where x_{t+1} is white noise nobody is asked.
    assert torch.equal(after[TOP], before[TOP]) and not torch.allclose(after[:TOP], before[:TOP], atol=1e-2)


def test_errors_of_an_initialiser_count_alike_at_every_level() -> None:
    network = moved(Initialiser(EXPERIMENT.model, 8, LADDER, 0))
    x, level = torch.randn(TOP, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(TOP)
    scaled = x / torch.hypot(network.noise_std, network.signal_std)[level].reshape(-1, 1, 1, 1)
    white = -scaled.square() / x
    h = (network.score(x, level) - white) * network.weight(level, is_noisy=False).sqrt().reshape(-1, 1, 1, 1)
    assert torch.allclose(h, apply_unet(network.prepare(level), scaled), atol=1e-3)


@pytest.mark.parametrize("from_chains", [True, False])
def test_an_initialiser_learns_the_mean_that_it_is_shown(from_chains: bool) -> None:
    network, level = moved(Initialiser(EXPERIMENT.model, 8, LADDER, 0)), torch.arange(TOP)
    pairs = draw_pairs(PhiloxNoise(0), level, torch.zeros(TOP, 1, 8, 8), level, LADDER, LEVELS.transition_scale)

    class Nothing(ScoreMatching):
        def outcome(self, *_: object) -> Outcome:
            return Outcome(torch.zeros(()), {})

    inner = Nothing(EXPERIMENT, LADDER)
    mine = WithInitialiser(inner, network, LADDER, LEVELS, from_chains)
    zero = torch.zeros_like(pairs.x_noisy)
    mean = Start(LEVELS, LADDER, network).draw(lambda _: pytest.fail("asked"), pairs.x_noisy, level, zero)
    here: Any = None
    if from_chains:
        # A chain that ends at the start's mean has nothing to teach; one that ends elsewhere has.
        exact = dataclasses.replace(pairs, score=zero + 7.0)
        assert float(mine.outcome(network, exact, mean, here).loss.detach()) < 1e-4
        assert float(mine.outcome(network, exact, mean + 0.1, here).loss.detach()) > 1e-2
    # Without chains the score given the data is what is to be learned, whatever y_pos is.
    exact = dataclasses.replace(pairs, score=network.score(pairs.x_noisy, level).detach(), y_pos=zero + 7.0)
    assert float(mine.outcome(network, exact, None if from_chains else mean + 7.0, here).loss.detach()) < 1e-6
    assert float(mine.outcome(network, pairs, None, here).loss.detach()) > 1e-2
    # The gradient reaches it, and nothing at the top does.
    at_top = torch.full_like(level, TOP)
    pairs = draw_pairs(PhiloxNoise(0), level, zero, at_top, LADDER, LEVELS.transition_scale)
    assert float(mine.outcome(network, pairs, None, here).loss.detach()) == 0


@pytest.mark.parametrize("target", ["chains", "data"])
def test_both_networks_learn_in_both_phases(target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(ema, "SETTLING_ITERATIONS", 1)
    setting = small("unet_cdrl", width=4, target=target)
    experiments = setting.experiments("digits", 0)
    trainee: Trainee = start(setting, experiments[0])
    assert isinstance(trainee, CooperativeTrainee)
    for index, experiment in enumerate(experiments):
        trainee.begin(experiment)
        before = {name: value.clone() for name, value in trainee.state.network.state_dict().items()}
        for step in range(3):
            trainee.step(batch_at(40 * (3 * index + step)))
        after = trainee.state.network.state_dict()
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        assert {"head.weight", "initialiser.head.weight"} <= changed
        assert not torch.equal(trainee.state.ema.shadow["initialiser.head.weight"], before["initialiser.head.weight"])
    drawn = trainee.draw({"mcmc": {"num_chain_steps": 1}}, 3)
    assert drawn.shape == (3, 1, 8, 8) and torch.equal(drawn[:2], trainee.draw({"mcmc": {"num_chain_steps": 1}}, 2))
    # What was ended goes on.
    record = Record.open(tmp_path / "out", {"benchmark": "x"})
    record.save_state("row", 0, trainee.state, 1.5)
    other = start(setting, experiments[0])
    assert record.load_state("row", 0, other.state) == 1.5
    other.begin(experiments[1])
    for one in (trainee, other):
        one.step(batch_at(400))
    for name, value in trainee.state.network.state_dict().items():
        assert torch.equal(value, other.state.network.state_dict()[name]), name


def test_the_initialiser_is_paid_for() -> None:
    with_one, without = small("unet_cdrl", width=4), small("unet")
    matching, recovery = (
        step_flop(with_one, first) / step_flop(without, second)
        for first, second in zip(with_one.experiments("digits", 0), without.experiments("digits", 0), strict=True)
    )
    # Its own three forwards come on top in the first phase, and replace a gradient's two of the energy in the second.
    assert matching > 1.05 and recovery < 1


def test_noisier_levels_weigh_less() -> None:
    assert factors(torch.tensor([1.0, 4.0, 16.0])).tolist() == pytest.approx([12 / 7, 6 / 7, 3 / 7])
    assert factors(torch.tensor([1.0, 0.0])).tolist() == [1, 1]


def test_variances_of_levels_are_measured_and_used() -> None:
    setting = small("unet_weighted")
    experiments = setting.experiments("digits", 0)
    trainee = start(setting, experiments[0])
    assert isinstance(trainee, WeightedTrainee)
    network = trainee.state.network
    plain = ScoreMatching(experiments[0], LADDER)
    for step in range(MEASURE_EVERY - 1):
        trainee.step(batch_at(40 * step))
    assert not network.level_variances.any()
    batch = batch_at(40 * MEASURE_EVERY)
    found = level_variances(trainee._step, batch)
    # One level by itself.
    pairs = trainee._step.draw(batch.images, batch.positions)
    level = int(pairs.level.bincount().argmax())
    chosen = pairs.level == level
    parts = {f.name: getattr(pairs, f.name) for f in dataclasses.fields(pairs)}
    some = type(pairs)(**{name: value[chosen] for name, value in parts.items() if value is not None})
    loss = plain.outcome(trainee._step.forward, some, None, trainee._step.levels.at(some.level)).loss
    network.zero_grad()
    loss.backward()
    squares = sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None)
    assert float(found[level]) == pytest.approx(int(chosen.sum()) * squares, rel=1e-3)
    trainee.step(batch)
    assert torch.allclose(network.level_variances, found, rtol=1e-3)
    # They are part of what is kept, and recovery has none.
    assert "level_variances" in json.loads(json.dumps(sorted(trainee.state.tensors()["weights"])))
    weighted = trainee._weighted
    assert weighted is not None and not torch.allclose(weighted._weight.values, plain._weight.values)
    trainee.begin(experiments[1])
    assert trainee._weighted is None
    trainee.step(batch_at(4000))


def test_larger_batches_see_as_many_images() -> None:
    (first, _), (larger, _) = (SETTINGS[name].experiments("digits", 0) for name in ("unet", "unet_128"))
    assert larger.train.batch_size == 4 * first.train.batch_size
    assert larger.optim.learning_rate == 2 * first.optim.learning_rate
    assert larger.optim.ema_decay == pytest.approx(first.optim.ema_decay**4)
