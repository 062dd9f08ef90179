"""Steps that follow the curvature which recovery measures: known answers, checkpoints, samplers, ranks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drl_dist.build import build_ladder, build_levels, build_posterior_sampler, build_sampler, curvature_bound
from drl_dist.checkpoints.format import CheckpointState, read_checkpoint, write_checkpoint
from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8
from drl_dist.config.tree import DiffusionConfig, Experiment, McmcConfig
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import Levels
from drl_dist.jobs.edit.driver import inpaint_run, interpolate_run
from drl_dist.jobs.edit.options import InpaintOptions, InterpolateOptions
from drl_dist.jobs.sample.task import SampleRequest, SampleTasks
from drl_dist.library.stored import load_model
from drl_dist.mcmc.curvature import CurvatureAlongMoves
from drl_dist.training.chain import GradientEngine
from drl_dist.training.generate import draw_together
from drl_dist.training.state import TrainState
from drl_dist.training.step import CURVATURE_RATE, TrainStep
from tests.helpers.steps import EAGER, batch, tiny_unet, waken
from tests.worlds import run_world


def experiment_of(**mcmc: object) -> Experiment:
    """A tiny U-Net on a geometric ladder of four levels, whose steps follow the curvature."""
    fields = {"step_rule": "bound", "energy_scale": "unit", "num_chain_steps": 3, "step_adaptation": "curvature"} | mcmc
    return dataclasses.replace(
        tiny_unet(data_std=0.4),
        diffusion=DiffusionConfig(ladder="geometric", num_levels=4, first_noise_to_signal=0.01),
        mcmc=McmcConfig(**fields),  # pyright: ignore[reportArgumentType]
    )


def fresh(experiment: Experiment, *, awake: bool = True) -> TrainState:
    state = TrainState.create(experiment, dtype=torch.float64)
    if awake:
        waken(state)
    return state


def curvature_of(state: TrainState) -> Tensor:
    curvature = state.network.curvature
    assert curvature is not None
    return curvature


def test_of_a_quadratic_it_is_the_root_mean_square_along_the_moves() -> None:
    curvatures = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
    places = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = torch.ones(2, dtype=torch.float64)
    meter = CurvatureAlongMoves(Levels(one, 3 * one, one, 0.5 * one, one))
    watched = meter.watching(lambda y: (y.sum(1), -curvatures * y))
    for y in places:
        watched(y)
    moves = places.diff(dim=0)
    expected = ((moves * (0.5 * curvatures + 3)).square().sum((0, 2)) / moves.square().sum((0, 2))).sqrt()
    torch.testing.assert_close(meter.curvature(), expected)


@pytest.mark.parametrize("adaptation", ["none", "curvature"])
@pytest.mark.parametrize(
    "mcmc", [{}, {"start": "tweedie", "kernel": "leimkuhler_matthews", "level_chain_steps": (2, 4, 3, 2)}]
)
def test_training_reports_the_curvature_of_white_gaussian_data(mcmc: dict[str, object], adaptation: str) -> None:
    # What a U-Net is before training; every direction is alike, so the root mean square is the curvature.
    experiment = experiment_of(step_adaptation=adaptation, **mcmc)
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    noise, signal = (part(levels.transition_scale) for part in (ladder.noise_in_y, ladder.signal_in_y))
    bound = curvature_bound(ladder, levels.transition_scale, levels.recovery_precision)
    expected = (1 / (noise**2 + (0.4 * signal) ** 2) + levels.recovery_precision) / bound
    numbers = TrainStep(fresh(experiment, awake=False), experiment, EAGER)(batch(0)).metrics()
    seen = [t for t in range(4) if f"curvature/level_{t}" in numbers]
    assert len(seen) > 1
    for t in seen:
        assert numbers[f"curvature/level_{t}"] == pytest.approx(float(expected[t]), rel=1e-9)


@pytest.mark.parametrize("mcmc", [{"step_rule": "released"}, {"num_chain_steps": 1}])
def test_what_has_no_bound_or_one_step_reports_none(mcmc: dict[str, object]) -> None:
    experiment = experiment_of(step_adaptation="none", **mcmc)
    numbers = TrainStep(fresh(experiment), experiment, EAGER)(batch(0)).metrics()
    assert "loss" in numbers
    assert not any(name.startswith("curvature") for name in numbers)


def test_levels_that_were_measured_follow_and_others_stay() -> None:
    experiment = experiment_of()
    state = fresh(experiment)
    step = TrainStep(state, experiment, EAGER)
    for index, given in enumerate((batch(0, size=2), batch(50))):
        before = curvature_of(state).clone()
        numbers = step(given).metrics()
        measured = {t for t in range(4) if f"curvature/level_{t}" in numbers}
        assert measured != set(range(4)) or index > 0
        for t in range(4):
            share = CURVATURE_RATE if t in measured else 0.0
            expected = (1 - share) * before[t] + share * numbers.get(f"curvature/level_{t}", 0.0)
            assert float(curvature_of(state)[t]) == pytest.approx(float(expected), rel=1e-12)


def test_chains_of_more_curved_levels_make_shorter_steps_and_never_longer_ones() -> None:
    adapted, halved = experiment_of(), experiment_of(step_adaptation="none", level_bound_fractions=(0.6, 0.3, 0.6, 0.2))
    ends = []
    for experiment in (adapted, halved):
        state = fresh(experiment)
        if experiment is adapted:
            curvature_of(state).copy_(torch.tensor([1.0, 4.0, 0.25, 9.0]))
        step, given = TrainStep(state, experiment, EAGER), batch(3)
        ends.append(step.run_chain(step.draw(given.images, given.positions), given.positions))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


def test_images_are_generated_with_the_averaged_curvatures() -> None:
    experiment = experiment_of()
    state = TrainState.create(experiment)
    waken(state)
    state.ema.shadow["curvature"].copy_(torch.tensor([4.0, 1.0, 0.5, 9.0]))
    images = draw_together(experiment, EAGER, state, 4, whole_way=False)
    other = experiment_of(step_adaptation="none", level_bound_fractions=(0.3, 0.6, 0.6, 0.2))
    engine = GradientEngine(state.ema_network(), EAGER)
    expected = build_sampler(other).sample(engine.raw_at, PhiloxNoise(0), torch.arange(4), (1, 8, 8))
    assert torch.equal(images[0], to_uint8(expected))
    plain = build_sampler(experiment).sample(engine.raw_at, PhiloxNoise(0), torch.arange(4), (1, 8, 8))
    assert not torch.equal(images[0], to_uint8(plain))


def stored(folder: Path, experiment: Experiment, curvature: list[float] | None) -> TrainState:
    """A state, whose checkpoint is in the folder."""
    state = TrainState.create(experiment)
    waken(state)
    if curvature is not None:
        state.ema.shadow["curvature"].copy_(torch.tensor(curvature))
    place = CheckpointState(step=7, images_seen=84, next_position=84, seed=0, data_fingerprint="f00d", world_size=1)
    write_checkpoint(folder, state.tensors(), place, experiment)
    return state


def test_editing_jobs_read_them_from_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"step_adaptation": "none", "level_bound_fractions": (0.3, 0.6, 0.6, 0.2)}
    sheets = []
    for name, experiment, curvature in (
        ("adapted", experiment_of(), [4.0, 1.0, 0.5, 9.0]),
        ("given", experiment_of(**given), None),
        ("one", experiment_of(), [1.0] * 4),
    ):
        stored(tmp_path / name, experiment, curvature)
        out = tmp_path / f"out-{name}"
        wanted = InterpolateOptions(model=str(tmp_path / name), out=str(out), pairs=1, columns=2, batch_size=2)
        assert interpolate_run(wanted) == 0
        sheets.append([path.read_bytes() for path in sorted((out / "images").iterdir())])
    assert sheets[0] == sheets[1] != sheets[2]

    class Asked(Exception):
        pass

    def ask(_: Experiment, num_rounds: int, curvature: Tensor | None) -> None:
        assert curvature is not None and curvature.tolist() == [4.0, 1.0, 0.5, 9.0]
        raise Asked

    monkeypatch.setattr("drl_dist.jobs.edit.driver.build_posterior_sampler", ask)
    with pytest.raises(Asked):
        inpaint_run(InpaintOptions(model=str(tmp_path / "adapted"), out=str(tmp_path / "inpainted")))


def test_jobs_read_them_from_the_checkpoint(tmp_path: Path) -> None:
    experiment = experiment_of()
    folder = tmp_path / "checkpoint-000000007"
    state = stored(folder, experiment, [4.0, 1.0, 0.5, 9.0])
    again = TrainState.create(experiment)
    again.load_tensors(read_checkpoint(folder, ("weights", "ema", "optimizer")).tensors, 7)
    assert torch.equal(again.ema.shadow["curvature"], state.ema.shadow["curvature"])

    model = load_model(str(folder), None)
    assert model.curvature is not None
    other = experiment_of(step_adaptation="none", level_bound_fractions=(0.3, 0.6, 0.6, 0.2))
    for build in (build_sampler, build_posterior_sampler):
        torch.testing.assert_close(
            build(model.experiment, curvature=model.curvature).levels.step_size, build(other).levels.step_size
        )
    shards = []
    for name, wanted, ema in (
        ("adapted", experiment, model.ema),
        ("given", other, {name: value for name, value in model.ema.items() if name != "curvature"}),
        ("one", experiment, model.ema | {"curvature": np.ones(4, dtype=np.float32)}),
    ):
        request = SampleRequest(
            preset="tiny",
            ema_sha256="e",
            config_sha256="c",
            num_images=2,
            seed=0,
            noise_scale=0.99,
            shard_size=2,
            batch_size=2,
            device="cpu",
            threads=1,
        )
        (tmp_path / name).mkdir()
        *_, record = SampleTasks(wanted, ema, request, str(tmp_path / name)).make(0)
        shards.append(record.png_sha256)  # pyright: ignore[reportAttributeAccessIssue]
    assert shards[0] == shards[1] != shards[2]


def test_a_run_continues_exactly_from_saved_tensors() -> None:
    experiment = experiment_of()
    whole, first = fresh(experiment), fresh(experiment)
    step = TrainStep(whole, experiment, EAGER)
    for index in range(4):
        step(batch(12 * index))
    before = TrainStep(first, experiment, EAGER)
    for index in range(2):
        before(batch(12 * index))
    saved = {
        part: {name: value.clone() for name, value in tensors.items()} for part, tensors in first.tensors().items()
    }
    again = fresh(experiment)
    again.load_tensors(saved, 2)
    after = TrainStep(again, experiment, EAGER)
    for index in range(2, 4):
        after(batch(12 * index))
    assert not torch.equal(curvature_of(whole), torch.ones_like(curvature_of(whole)))
    for part, tensors in whole.tensors().items():
        for name, value in tensors.items():
            assert torch.equal(again.tensors()[part][name], value), name


def adapting_rank(rank: int, world_size: int, folder: Path) -> None:
    experiment = experiment_of()
    state = fresh(experiment)
    step = TrainStep(state, experiment, EAGER)
    for index in range(3):
        whole = batch(12 * index)
        step(Batch(whole.images[rank::world_size], whole.positions[rank::world_size]))
    save_file({"curvature": curvature_of(state).clone()}, folder / f"{world_size}-{rank}")


@pytest.mark.slow
def test_ranks_follow_the_curvature_of_all(tmp_path: Path) -> None:
    adapting_rank(0, 1, tmp_path)
    run_world(adapting_rank, 2, tmp_path)
    alone, *both = (load_file(tmp_path / name)["curvature"] for name in ("1-0", "2-0", "2-1"))
    assert torch.equal(both[0], both[1])
    torch.testing.assert_close(both[0], alone, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("mcmc", "message"),
    [
        ({"step_rule": "released"}, "expected none, or curvature with mcmc.step_rule bound"),
        (
            {"num_chain_steps": 1},
            "chains of fewer than two steps (mcmc.num_chain_steps 1)",
        ),
        ({"level_chain_steps": (2, 1, 2, 2)}, "chains of fewer than two steps (mcmc.level_chain_steps (2, 1, 2, 2))"),
    ],
)
def test_what_cannot_be_adapted_is_refused(mcmc: dict[str, object], message: str) -> None:
    experiment = experiment_of(step_adaptation="none", **mcmc)
    with pytest.raises(UserError, match=re.escape(message)):
        dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, step_adaptation="curvature"))
