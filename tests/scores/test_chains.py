"""``python -m benchmarks.chains``: every kind of chain on normal data, whose energies are known exactly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import digit_features
from benchmarks.chains import __main__ as command
from benchmarks.chains import study as study_module
from benchmarks.chains.exact import NOISE, exact_model
from benchmarks.chains.model import Basis, BasisName, Model, Place, bases_of
from benchmarks.chains.moves import Adjusted, Averaged, Chain, Frozen, Langevin, Underdamped
from benchmarks.chains.normal import exactness, is_linear, normal_model
from benchmarks.chains.sampler import Way, draw, draw_pixels
from benchmarks.chains.study import model_of
from benchmarks.chains.ways import GROUPS
from benchmarks.quality.data import load_data
from benchmarks.quality.runs import Run
from benchmarks.quality.settings import SETTINGS, applied
from benchmarks.quality.trainees import EnergyTrainee
from drl_dist.build import build_ladder, build_levels
from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.training import ema

main = command.main
VARIANCES = (1.0, 0.25, 0.01, 1e-4)
SMALL: dict[str, dict[str, Any]] = {
    "model": {"width": 8, "time_embedding_dim": 8, "time_hidden_dim": 8},
    "train": {"batch_size": 8},
    "optim": {"warmup_steps": 2},
}
MIDDLE = 4


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "stop_on_signals", lambda: None)


@pytest.fixture(scope="module")
def exact() -> Model:
    """Normal data of four pixels along rotated directions, and their densities."""
    experiment = preset("digits", "unet")
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    generator = torch.Generator().manual_seed(3)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    basis = Basis(rotation, torch.tensor(VARIANCES, dtype=torch.float64))

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        t = int(level[0])
        of_x = ladder.cumulative_scale[t] ** 2 * basis.variances + ladder.cumulative_std[t] ** 2
        precision = 1 / (levels.transition_scale[t] ** 2 * of_x)

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            along = y.double().flatten(1) @ rotation.T
            gradient = -(along * precision) @ rotation
            return (-0.5 * (along.square() * precision).sum(1)).float(), gradient.float().reshape(y.shape)

        return raw

    return Model(levels, ladder, raw_at, {"components": basis}, PhiloxNoise(0), (1, 2, 2))


def along(model: Model, y: Tensor) -> Tensor:
    return y.double().flatten(1) @ model.bases["components"].directions.T


def place_of(model: Model, count: int, level: int = MIDDLE) -> tuple[Place, Tensor]:
    """A level with one x_noisy for all chains, and the precisions of the conditional density."""
    x = torch.tensor([0.3, -0.2, 0.1, 0.5]).reshape(1, 1, 2, 2).expand(count, -1, -1, -1)
    of_x = model._variances_of_x(model.bases["components"], level)
    precision = model.precision(level) + 1 / (model.scale(level) ** 2 * of_x)
    return Place(model, level, x, model.density(level, count), torch.arange(count), 1.0), precision


@pytest.mark.parametrize(
    "chain",
    [
        Langevin(0.9, "components"),
        Underdamped(1.2, 0.0),
        Underdamped(1.2, 0.6),
        Underdamped(1.2, 0.3, "components"),
        Adjusted(1.2),
    ],
)
def test_long_chains_draw_the_conditional_density(exact: Model, chain: Chain) -> None:
    place, precision = place_of(exact, 6000)
    found = along(exact, chain.run(place, place.x_noisy, 60).y)
    mean = along(exact, place.x_noisy[:1])[0] * exact.precision(MIDDLE) / precision
    assert torch.allclose(found.var(0) * precision, torch.ones(4, dtype=torch.float64), atol=0.08)
    assert torch.allclose((found.mean(0) - mean) * precision.sqrt(), torch.zeros(4, dtype=torch.float64), atol=0.06)


def test_plain_chains_are_too_wide_by_what_is_known(exact: Model) -> None:
    place, precision = place_of(exact, 6000)
    c = 1.2
    found = along(exact, Langevin(c).run(place, place.x_noisy, 60).y).var(0) * precision
    relative = c**2 * precision / exact.largest_precision(MIDDLE)
    assert torch.allclose(found, 1 / (1 - relative / 4), rtol=0.08)
    assert float(found.max()) > 1.3


def test_one_move_of_root_two_is_exact_in_the_right_basis(exact: Model) -> None:
    place, precision = place_of(exact, 6000)
    far = place.x_noisy + 3.0
    found = along(exact, Langevin(2**0.5, "components").run(place, far, 1).y)
    assert torch.allclose(found.var(0) * precision, torch.ones(4, dtype=torch.float64), atol=0.08)


def test_moves_that_share_a_whole_gradient_are_one_larger_move(exact: Model) -> None:
    at_top = exact.num_levels - 1
    # Nothing pulls at a marginal top level, so that Frozen shares all there is.
    place, _ = place_of(exact, 6000, at_top)
    two, one = (chain.run(place, place.x_noisy, 1).y for chain in (Frozen(0.6, 2), Langevin(0.6 * 2**0.5)))
    assert torch.allclose(two.mean(0), one.mean(0), atol=0.05)
    assert torch.allclose(two.var(0), one.var(0), rtol=0.08)
    place, _ = place_of(exact, 5)
    assert torch.equal(Frozen(0.7, 1).run(place, place.x_noisy, 3).y, Langevin(0.7).run(place, place.x_noisy, 3).y)
    # Below, the pull is computed afresh: with f_t flat, two moves are two steps.
    flat = dataclasses.replace(place, density=lambda y: (y.new_zeros(len(y)), torch.zeros_like(y)))
    assert torch.allclose(Frozen(0.7, 2).run(flat, place.x_noisy, 1).y, Langevin(0.7).run(flat, place.x_noisy, 2).y)


def test_momentum_without_memory_is_langevin_with_averaged_noise(exact: Model) -> None:
    place, _ = place_of(exact, 7)
    c = 0.8
    found = Underdamped(c, 0.0).run(place, place.x_noisy, 1).y
    root = exact.largest_precision(MIDDLE) ** -0.5
    gradient = place.gradient(place.x_noisy)
    expected = place.x_noisy + c**2 / 4 * root**2 * gradient + c / 2 * root * (place.normal_before() + place.normal(0))
    assert torch.allclose(found, expected, atol=1e-6)


def test_starts_with_the_covariance_of_normal_data_draw_them_without_chains(exact: Model) -> None:
    ids = torch.arange(6000)
    found = along(exact, draw(exact, Way(0, start_basis="components", has_end=False), ids)).var(0)
    noise = float(exact.ladder.cumulative_std[0]) ** 2
    expected = torch.tensor(VARIANCES, dtype=torch.float64) + noise
    # x_T is taken for white noise, and still has a 140th of signal.
    assert torch.allclose(found, expected, rtol=0.1)
    plain = along(exact, draw(exact, Way(0, has_end=False), ids)).var(0)
    assert float((plain / expected)[0]) < 0.8


def test_gradients_are_counted(exact: Model) -> None:
    def count(way: Way) -> int:
        before = exact.num_gradients
        draw(exact, way, torch.arange(2))
        return exact.num_gradients - before

    assert count(Way(3)) == 30 + 9 + 1
    assert count(Way(3, has_end=False)) == 30 + 9
    assert count(Way(4, starts_by_tweedie=False)) == 40 + 1
    assert count(Way(3, reuses=True)) == 30 + 1
    assert count(Way(3, Underdamped())) == count(Way(3, Frozen())) == 40
    # One more where each chain starts, and none for the starts below.
    assert count(Way(3, Adjusted(), reuses=True)) == 40 + 1
    assert count(Way((2, 2, 2, 2, 2, 0, 0, 0, 0, 0))) == 10 + 9 + 1


def test_adjusted_chains_know_the_gradient_at_their_end(exact: Model) -> None:
    place, _ = place_of(exact, 9)
    ended = Adjusted(0.9).run(place, place.x_noisy, 3)
    assert ended.gradient is not None
    assert torch.allclose(ended.gradient, place.gradient(ended.y), atol=1e-4)
    ids = torch.arange(4)
    way = Way(2, Adjusted(), reuses=True)
    assert torch.allclose(draw(exact, way, ids), draw(exact, dataclasses.replace(way, reuses=False), ids), atol=1e-4)
    stale = [draw(exact, Way(2, Langevin(), reuses=reuses), ids) for reuses in (True, False)]
    assert not torch.allclose(*stale, atol=1e-3)


def test_bases_hold_the_variances_of_the_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(500, 1, 4, 4, generator=generator) * torch.linspace(0.1, 1, 4)[:, None]
    bases = bases_of(images)
    flat = images.double().flatten(1)
    for basis in bases.values():
        rows = basis.directions
        assert torch.allclose(rows @ rows.T, torch.eye(16, dtype=torch.float64), atol=1e-9)
        assert torch.allclose((flat @ rows.T).var(0), basis.variances, atol=1e-9)
    # The first cosine is the mean; neighbouring principal components do not covary.
    assert torch.allclose(bases["cosines"].directions[0], torch.full((16,), 0.25, dtype=torch.float64))
    cross = (flat @ bases["components"].directions.T).T.cov()
    assert float((cross - cross.diag().diag()).abs().max()) < 1e-9
    root = bases["cosines"].root(torch.arange(16.0, dtype=torch.float64))
    assert torch.allclose(root, root.T) and torch.allclose(
        (root @ root).double(),
        bases["cosines"].directions.T @ torch.arange(16.0).double().diag() @ bases["cosines"].directions,
        atol=1e-4,
    )


def test_the_plain_way_is_that_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ema, "SETTLING_ITERATIONS", 1)
    # Recovery would refuse K = 0.
    experiment = applied(preset("digits", "unet"), SMALL, SETTINGS["unet"].phases[0].overrides)
    trainee = EnergyTrainee(experiment)
    for parameter in trainee.state.ema.shadow.values():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model = model_of(trainee.state, experiment, load_data("digits", ""))
    plain = {"kernel": "langevin", "bound_fraction": 0.9}
    for way, mcmc in (
        (Way(2), {"num_chain_steps": 2}),
        (Way(2, Averaged(1.4)), {"kernel": "leimkuhler_matthews", "bound_fraction": 1.4}),
        (Way(0), {"num_chain_steps": 0}),
        (Way(2, Langevin(1.2), starts_by_tweedie=False), {"start": "x_noisy", "bound_fraction": 1.2}),
        (Way(1, has_end=False, noise_scale=0.9), {"last_step": "none", "sampling_noise_scale": 0.9}),
    ):
        steps = way.steps
        theirs = trainee.draw({"mcmc": {"num_chain_steps": steps} | plain | mcmc}, 6)
        ours = draw_pixels(model, way, 6)
        assert (ours.int() - theirs.int()).abs().max() <= 1 and ours.float().std() > 1, way


def test_every_way_can_be_drawn(exact: Model) -> None:
    names: tuple[BasisName, ...] = ("pixels", "cosines", "components")
    model = dataclasses.replace(exact, bases=dict.fromkeys(names, exact.bases["components"]))
    labels = [label for ways in GROUPS.values() for label in ways]
    assert len(set(labels)) == len(labels)
    kinds = {
        (type(way.chain), way.starts_by_tweedie, way.start_basis): way
        for ways in GROUPS.values()
        for way in ways.values()
    }
    assert len(kinds) > 7
    for way in kinds.values():
        assert bool(draw(model, way, torch.arange(3)).abs().max() < 20)


def test_what_normal_data_become_is_known_without_samples(exact: Model, capsys: pytest.CaptureFixture[str]) -> None:
    variances = torch.tensor(VARIANCES, dtype=torch.float64)
    model = normal_model(variances, preset("digits", "unet"))
    true = variances + float(exact.ladder.cumulative_std[0]) ** 2
    for way in (
        Way(2),
        Way(2, reuses=True),
        Way(2, Underdamped(1.2, 0.5)),
        Way(1, Langevin(0.9, "components"), start_basis="components", noise_scale=0.97),
        Way(3, Frozen(0.9, 2), starts_by_tweedie=False),
    ):
        assert is_linear(way)
        found = exactness(model, way)
        drawn = draw(exact, dataclasses.replace(way, has_end=False), torch.arange(4000))
        ratio = along(exact, drawn).square().mean(0) / true
        assert found.narrowest == pytest.approx(float(ratio.min()), rel=0.12)
        assert found.widest == pytest.approx(float(ratio.max()), rel=0.12)
        assert found.divergence == pytest.approx(0.5 * float((ratio - 1 - ratio.log()).sum()), rel=0.25, abs=0.02)
    perfect = exactness(model, Way(0, start_basis="components"))
    # But for the signal in x_T.
    assert perfect.divergence < 1e-3 and perfect.gradients == 10
    assert not is_linear(Way(2, Adjusted())) and not is_linear(Way(2, Langevin(0.9, "pixels")))
    assert main(["--normal", "--groups", "Langevin,adjusted"]) == 0
    table = capsys.readouterr().out
    assert "| Langevin: Tweedie start, K = 3, c = 0.9 | 40 |" in table and "adjusted" not in table


def test_exact_energies_of_images_are_those_of_a_mixture() -> None:
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    model, mixture = exact_model(images, preset("digits", "unet"))
    y = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    for t in (0, 5, 9):
        scale, kept = float(model.levels.transition_scale[t]), float(model.ladder.cumulative_scale[t])
        std = scale * (float(model.ladder.cumulative_std[t]) ** 2 + (kept * NOISE) ** 2) ** 0.5
        leaf = y.double().requires_grad_()
        normal = torch.distributions.Normal(scale * kept * mixture.images.double().flatten(1), std)
        value = normal.log_prob(leaf.flatten(1)[:, None]).sum(2).logsumexp(1)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        found = model.density(t, 3)(y)
        # Up to a constant of the level.
        assert torch.allclose((found[0] - found[0][0]).double(), (value - value[0]).detach(), rtol=1e-3, atol=1e-2)
        assert torch.allclose(found[1].double(), gradient, rtol=1e-3, atol=1e-2)
    # Long chains arrive at the images, with their noise.
    found = draw(model, Way(12), torch.arange(400)).flatten(1)
    distance, nearest = torch.cdist(found, mixture.images.flatten(1)).min(1)
    assert float(distance.square().mean() / 16) == pytest.approx(NOISE**2, rel=0.15)
    assert int(nearest.bincount(minlength=5).min()) > 50
    perfect = mixture.draw(400, torch.Generator().manual_seed(0))
    assert perfect.dtype == torch.uint8
    assert float(perfect.float().std()) == pytest.approx(float(images.float().std()), rel=0.15)


@pytest.mark.slow
def test_a_study_keeps_its_weights_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ema, "SETTLING_ITERATIONS", 1)
    monkeypatch.setattr(digit_features, "_STEPS", 5)
    tiny = dataclasses.replace(
        SETTINGS["unet"],
        overrides={"optim": SETTINGS["unet"].overrides["optim"]} | {"model": SMALL["model"], "train": SMALL["train"]},
    )
    monkeypatch.setitem(SETTINGS, "unet", tiny)
    ways = {"one": Way(1), "none": Way(0)}
    monkeypatch.setitem(GROUPS, "Langevin", ways)
    words = ["--out", str(tmp_path / "out"), "--seeds", "1", "--budget", "0.01", "--images", "64"]
    words += ["--groups", "Langevin"]
    threads = torch.get_num_threads()
    try:
        assert main(words) == 0
        text = (tmp_path / "out/table.md").read_text()
        assert "| Langevin: one | 20 |" in text and "| Langevin: none | 10 |" in text
        # The weights are there: nothing is trained again, and only what has changed is drawn again.
        monkeypatch.setattr(Run, "_train", lambda *_: pytest.fail("steps"))
        monkeypatch.setitem(ways, "one", Way(2))
        drawn: list[Way] = []
        real = study_module.measure
        monkeypatch.setattr(
            study_module, "measure", lambda model, way, *more: drawn.append(way) or real(model, way, *more)
        )
        assert main(words) == 0 and drawn == [Way(2)]
    finally:
        torch.set_num_threads(threads)
    (kept,) = (tmp_path / "out/ways").glob("none-0.json")
    assert json.loads(kept.read_text())["gradients"] == 10
    with pytest.raises(UserError, match="another request"):
        main([*words, "--images", "65"])


@pytest.mark.parametrize(
    ("more", "match"),
    [(["--groups", "x"], "--groups"), (["--seeds", "0"], "--seeds"), (["--budget", "nan"], "--budget")],
)
def test_mistakes_are_refused(more: list[str], match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        main(["--out", str(tmp_path / "new"), *more])
