"""Images of many visitors are those of the library, whoever shares the network's calls with them."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import drl_dist
from drl_dist.build import build_sampler
from drl_dist.common.errors import UserError
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.serving.engine import Busy, ServingEngine, Visit
from drl_dist.serving.requests import DenoiseRequest, InpaintRequest, InterpolateRequest, Request, SampleRequest
from drl_dist.training.state import TrainState
from tests.helpers.labelled import write_model
from tests.helpers.steps import tiny_unet, waken
from tests.support import write_tiny_checkpoint

LEVELS, STEPS = 6, 3
"""T, and K, of the plain model: T K calls make an image."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> drl_dist.Model:
    folder = tmp_path_factory.mktemp("plain") / "checkpoint"
    return drl_dist.load(write_tiny_checkpoint(folder, width=4, num_chain_steps=STEPS))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> drl_dist.Model:
    folder = tmp_path_factory.mktemp("labelled") / "checkpoint"
    write_model(folder, "class")
    return drl_dist.load(folder)


def with_mcmc(**fields: Any) -> drl_dist.Model:
    experiment = tiny_unet()
    experiment = dataclasses.replace(experiment, mcmc=dataclasses.replace(experiment.mcmc, **fields))
    state = TrainState.create(experiment)
    waken(state)
    return drl_dist.Model.of_state(experiment, state)


def finish(engine: ServingEngine) -> None:
    while engine.step():
        pass


def alone(model: drl_dist.Model, request: Request) -> Tensor:
    engine = ServingEngine(model)
    visit = engine.submit(request)
    finish(engine)
    assert (engine.num_active, engine.num_waiting) == (0, 0)
    return visit.image()


def difference(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize(
    "mcmc",
    [
        {"start": "tweedie", "last_step": "tweedie", "kernel": "leimkuhler_matthews"},
        {"start": "tweedie", "sampling_chain_steps": 0},
        {"num_chain_steps": 0, "top_level": "conditional"},
        {"kernel": "tests.serving.kernels:Leapfrog"},
    ],
    ids=["tweedie", "starts", "normal", "own"],
)
def test_alone_an_image_is_that_of_the_library_bit_for_bit(mcmc: dict[str, Any]) -> None:
    model = with_mcmc(**mcmc)
    for number in (0, 2):
        expected = model.sample(number + 1, seed=4, batch_size=1)[number]
        assert torch.equal(alone(model, SampleRequest(seed=4, number=number)), expected)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"label": "bee"},
        {"label": "ant,cow"},
        {"label": "bee", "guidance": 1.5},
        {"compose": "ant & 2 * bee - cow"},
        {"label": "cow", "num_chain_steps": 4},
    ],
)
def test_labels_are_those_of_the_library(labelled: drl_dist.Model, asked: dict[str, Any]) -> None:
    words = {"labels" if name == "label" else name: value for name, value in asked.items()}
    if "labels" in words:
        words["labels"] = words["labels"].split(",")
    expected = labelled.sample(4, seed=7, batch_size=1, **words)
    for number in (2, 3):
        assert torch.equal(alone(labelled, SampleRequest(seed=7, number=number, **asked)), expected[number])


def test_an_image_between_two_is_that_of_the_library(plain: drl_dist.Model) -> None:
    row = plain.interpolate(3, 1, 5, seed=6, batch_size=1)
    for column, expected in enumerate(row):
        request = InterpolateRequest(seed=6, first=3, second=1, weight=column / 4)
        assert torch.equal(alone(plain, request), expected)


def given(number: int) -> Tensor:
    return torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)


@pytest.mark.parametrize("mcmc", [{}, {"start": "tweedie", "last_step": "tweedie", "kernel": "leimkuhler_matthews"}])
def test_edited_images_are_those_of_the_library(mcmc: dict[str, Any]) -> None:
    model = with_mcmc(**mcmc)
    images, mask = torch.stack([given(number) for number in range(3)]), torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:] = True
    filled = model.inpaint(images, mask, seed=6, num_rounds=2, batch_size=1)
    clean = model.denoise(images, 40, seed=6, batch_size=1)
    for number in (0, 2):
        request = InpaintRequest(seed=6, number=number, image=given(number), mask=mask, num_rounds=2)
        assert torch.equal(alone(model, request), filled[number])
        assert torch.equal(
            alone(model, DenoiseRequest(seed=6, number=number, image=given(number), noise_std=40)), clean[number]
        )


def test_all_kinds_share_calls(labelled: drl_dist.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:] = True
    requests: list[Request] = [
        SampleRequest(seed=1, label="ant"),
        InterpolateRequest(seed=2, label="bee"),
        InpaintRequest(seed=3, image=given(0), mask=mask, label="cow", guidance=1.0),
        DenoiseRequest(seed=4, image=given(1), noise_std=40),
    ]
    expected = [alone(labelled, request) for request in requests]
    engine = ServingEngine(labelled)
    spy = Spy(engine, monkeypatch)
    visits = [engine.submit(request) for request in requests]
    finish(engine)
    assert [difference(visit.image(), image) <= 1 for visit, image in zip(visits, expected, strict=True)] == [True] * 4
    assert torch.equal(expected[2][0][~mask], given(0)[0][~mask])
    assert len(spy.levels[0]) == 5 and len(set(spy.levels[0])) == 2
    assert engine.num_calls == max(visit.num_gradients for visit in visits)


def test_in_company_images_are_those_of_the_library_within_rounding(labelled: drl_dist.Model) -> None:
    labels: list[dict[str, Any]] = [
        {},
        {"label": "ant"},
        {"label": "bee", "guidance": 2.0},
        {"compose": "ant - cow"},
    ]
    requests = [
        SampleRequest(seed=number % 3, number=number, **asked)
        for number, asked in zip(range(12), itertools.cycle(labels), strict=False)
    ]
    expected = [alone(labelled, request) for request in requests]
    # One after the other, so that they are at all levels and steps.
    engine = ServingEngine(labelled, max_batch=32)
    visits: list[Visit] = []
    for request in requests:
        visits.append(engine.submit(request))
        engine.step()
    assert engine.num_active == 12
    finish(engine)
    images = [visit.image() for visit in visits]
    assert [difference(*pair) <= 1 for pair in zip(images, expected, strict=True)] == [True] * 12
    assert min(difference(*pair) for pair in itertools.combinations(images, 2)) > 20


class Spy:
    """An engine's network, which notes the levels of each call."""

    def __init__(self, engine: ServingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.levels: list[list[int]] = []
        network = engine._network_for

        def watched(asked: Any) -> LogDensityAndGrad:
            self.levels.append([int(level) for question in asked for level in question.level])
            return network(asked)

        monkeypatch.setattr(engine, "_network_for", watched)


def test_who_comes_joins_at_the_next_call(plain: drl_dist.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ServingEngine(plain)
    spy = Spy(engine, monkeypatch)
    first = engine.submit(SampleRequest(seed=1))
    for _ in range(STEPS + 2):
        engine.step()
    second = engine.submit(SampleRequest(seed=2))
    finish(engine)
    top = LEVELS - 1
    assert spy.levels[: STEPS + 3] == [[top]] * STEPS + [[top - 1]] * 2 + [[top - 1, top]]
    assert engine.num_calls == STEPS + 2 + LEVELS * STEPS and engine.num_images == 2 * LEVELS * STEPS
    assert first.num_gradients == second.num_gradients == LEVELS * STEPS


def test_frames_come_level_by_level(plain: drl_dist.Model) -> None:
    engine = ServingEngine(plain)
    visit = engine.submit(SampleRequest(seed=1))
    frames = visit.frames()
    engine.step()
    assert next(frames).level == LEVELS
    for _ in range(STEPS - 1):
        engine.step()
    # Nothing but the first K calls was needed for the next one.
    assert engine.num_calls == STEPS
    assert next(frames).level == LEVELS - 1
    finish(engine)
    rest = list(frames)
    assert [frame.level for frame in rest] == list(reversed(range(LEVELS - 1)))
    assert all(frame.image.dtype == torch.uint8 and frame.image.shape == (1, 8, 8) for frame in rest)


@pytest.mark.parametrize(
    ("kernel", "num_values"), [("langevin", STEPS), ("tests.serving.kernels:Leapfrog", 1 + 2 * STEPS)]
)
def test_energies_are_means_over_the_chain_of_the_level(plain: drl_dist.Model, kernel: str, num_values: int) -> None:
    mcmc = dataclasses.replace(plain.experiment.mcmc, kernel=kernel)
    experiment = dataclasses.replace(plain.experiment, mcmc=mcmc)
    model = drl_dist.Model(experiment, plain.weights, step=0)
    values: list[Tensor] = []
    engine = ServingEngine(model)
    network = engine._engine.raw_at

    def listening(level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad:
        raw_and_grad = network(level, condition)

        def heard(y: Tensor) -> tuple[Tensor, Tensor]:
            raw, gradient = raw_and_grad(y)
            values.append(raw)
            return raw, gradient

        return heard

    engine._engine.raw_at = listening
    visit = engine.submit(SampleRequest(seed=1))
    finish(engine)
    first, *frames = visit.frames()
    scale = build_sampler(experiment).levels.energy_scale.flip(0)
    expected = -torch.cat(values).double().reshape(LEVELS, num_values).mean(1) * scale
    found = torch.tensor([frame.energy for frame in frames]).double()
    assert first.energy is None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_batch_is_bounded_and_nobody_is_passed(labelled: drl_dist.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ServingEngine(labelled, max_batch=3)
    spy = Spy(engine, monkeypatch)
    guided = {"label": "ant", "guidance": 1.0}
    visits = [engine.submit(SampleRequest(seed=seed, **(guided if seed in (1, 2) else {}))) for seed in range(5)]
    engine.step()
    assert (engine.num_active, engine.num_waiting) == (2, 3)
    # There is room for one image, but a request for two is next.
    visits[0].cancel()
    engine.step()
    assert (engine.num_active, engine.num_waiting) == (1, 3)
    finish(engine)
    assert max(map(len, spy.levels)) == 3
    for seed, visit in enumerate(visits[1:], 1):
        expected = alone(labelled, SampleRequest(seed=seed, **(guided if seed in (1, 2) else {})))
        assert difference(visit.image(), expected) <= 1


def test_who_leaves_takes_no_more_calls(plain: drl_dist.Model) -> None:
    engine = ServingEngine(plain, max_batch=1)
    gone, other, waiting = (engine.submit(SampleRequest(seed=seed)) for seed in range(3))
    engine.step()
    gone.cancel()
    waiting.cancel()
    finish(engine)
    assert engine.num_calls == 1 + LEVELS * STEPS
    assert torch.equal(other.image(), plain.sample(1, seed=1)[0])
    for visit in (gone, waiting):
        with pytest.raises(UserError, match="cancel"):
            visit.image()


def test_too_many_are_refused_until_there_is_room(plain: drl_dist.Model) -> None:
    engine = ServingEngine(plain, max_batch=1, max_waiting=1)
    first = engine.submit(SampleRequest())
    second = engine.submit(SampleRequest(seed=1))
    with pytest.raises(Busy, match="1 requests that wait already"):
        engine.submit(SampleRequest(seed=2))
    second.cancel()
    third = engine.submit(SampleRequest(seed=2))
    finish(engine)
    assert torch.equal(first.image(), plain.sample(1)[0])
    assert torch.equal(third.image(), plain.sample(1, seed=2)[0])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (SampleRequest(seed=-1), "argument seed"),
        (SampleRequest(number=-1), "argument number"),
        (SampleRequest(num_chain_steps=0), "argument num_chain_steps"),
        (SampleRequest(num_chain_steps=10**9), "argument num_chain_steps"),
        (SampleRequest(label="dog"), "--label"),
        (SampleRequest(label="ant:2", number=2), "argument number: got 2, expected 0 to 1"),
        (SampleRequest(label="ant", guidance=float("nan")), "--guidance"),
        (SampleRequest(compose="ant + bee + cow"), "a sum of 4 energies"),
        (InterpolateRequest(first=1, second=1), "argument first and second"),
        (InpaintRequest(image=torch.zeros(1, 9, 9), mask=torch.zeros(9, 9) > 0), "image"),
        (InpaintRequest(image=torch.zeros(1, 8, 8), mask=torch.zeros(9, 9) > 0), "mask"),
        (InpaintRequest(image=torch.zeros(1, 8, 8), mask=torch.eye(8) > 0, num_rounds=1000), "argument num_rounds"),
        (DenoiseRequest(image=torch.zeros(1, 8, 8), noise_std=0.1), "argument noise_std"),
        (DenoiseRequest(image=torch.zeros(1, 8, 8), noise_std=float("nan")), "argument noise_std"),
        (InterpolateRequest(weight=1.5), "argument weight"),
        (InterpolateRequest(weight=float("nan")), "argument weight"),
    ],
)
def test_what_cannot_be_had_is_refused(labelled: drl_dist.Model, request_: Request, message: str) -> None:
    engine = ServingEngine(labelled, max_batch=3)
    with pytest.raises(UserError, match=message):
        engine.submit(request_)
    assert engine.num_waiting == 0 and not engine.step()


def test_visitors_in_threads_are_served_each_with_his_own(plain: drl_dist.Model) -> None:
    engine = ServingEngine(plain, max_batch=4)
    images: dict[int, Tensor] = {}

    def visit(seed: int) -> None:
        images[seed] = engine.submit(SampleRequest(seed=seed)).image()

    with engine.running():
        visitors = [threading.Thread(target=visit, args=(seed,)) for seed in range(10)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join(60)
    assert engine.num_calls < 10 * LEVELS * STEPS
    for seed in range(10):
        assert difference(images[seed], plain.sample(1, seed=seed)[0]) <= 1


def test_an_end_of_the_engine_is_told_to_all(plain: drl_dist.Model) -> None:
    engine = ServingEngine(plain, max_batch=1)
    visits = [engine.submit(SampleRequest(num_chain_steps=1000)) for _ in range(2)]
    with engine.running():
        next(visits[0].frames())
    for visit in visits:
        with pytest.raises(RuntimeError, match="has ended"):
            list(visit.frames())
    with pytest.raises(RuntimeError, match="has ended"):
        engine.submit(SampleRequest())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_of_the_network_is_told_to_all(plain: drl_dist.Model) -> None:
    engine = ServingEngine(plain, max_batch=1)

    def broken(level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad:
        raise RuntimeError("out of memory")

    engine._engine.raw_at = broken
    visits = [engine.submit(SampleRequest()) for _ in range(2)]
    with engine.running():
        for visit in visits:
            with pytest.raises(RuntimeError, match="out of memory"):
                visit.image()


def test_an_image_that_is_not_finite_fails_alone(plain: drl_dist.Model) -> None:
    engine = ServingEngine(plain)
    network = engine._engine.raw_at

    def spoilt(level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad:
        raw_and_grad = network(level, condition)

        def first_is_nan(y: Tensor) -> tuple[Tensor, Tensor]:
            raw, gradient = raw_and_grad(y)
            if len(y) == 2:
                gradient = gradient.clone()
                gradient[0] = float("nan")
            return raw, gradient

        return first_is_nan

    engine._engine.raw_at = spoilt
    first, second = (engine.submit(SampleRequest(seed=seed)) for seed in range(2))
    finish(engine)
    with pytest.raises(UserError, match="image at level 5: got values that are not finite"):
        first.image()
    assert difference(second.image(), plain.sample(1, seed=1)[0]) <= 1


def test_numbers_of_the_engine_are_checked(plain: drl_dist.Model) -> None:
    makers: list[Callable[[], ServingEngine]] = [
        lambda: ServingEngine(plain, max_batch=0),
        lambda: ServingEngine(plain, max_waiting=-1),
    ]
    for make in makers:
        with pytest.raises(UserError, match="argument max_"):
            make()
