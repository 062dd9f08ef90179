"""How long visitors wait, said in advance: exactly as many calls of the network as they then wait."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

import drl_dist
from drl_dist.serving.engine import ServingEngine
from drl_dist.serving.outlook import calls_until
from drl_dist.serving.requests import SampleRequest
from tests.support import write_tiny_checkpoint


@dataclass(eq=False)
class Counted:
    num_gradients: int
    num_answered: int = 0


def test_who_is_in_the_batch_waits_for_the_own_chain_alone() -> None:
    first, second = Counted(10, 4), Counted(3)
    assert calls_until(first, [(first, 1), (second, 1)], [], 2) == (0, 6)
    assert calls_until(second, [(first, 1), (second, 1)], [], 2) == (0, 3)
    assert calls_until(Counted(5), [(first, 1)], [], 2) == (0, 0)


def test_who_waits_comes_in_when_there_is_room() -> None:
    guests = [(Counted(10, 4), 1), (Counted(9), 1)]
    waiting = [(Counted(20), 1), (Counted(5), 2), (Counted(1), 1)]
    assert calls_until(waiting[0][0], guests, waiting, 2) == (0, 6 + 20)
    # Takes both places, of which the second is free after 26 calls.
    assert calls_until(waiting[1][0], guests, waiting, 2) == (1, 26 + 5)
    assert calls_until(waiting[2][0], guests, waiting, 2) == (2, 31 + 1)
    assert calls_until(waiting[2][0], [], waiting[2:], 2) == (0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_calls_that_were_said_are_made(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    torch.set_num_threads(1)
    checkpoint = write_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "c", width=4, num_chain_steps=2)
    engine = ServingEngine(drl_dist.load(checkpoint), max_batch=2, max_waiting=20)
    chosen = random.Random(seed)
    visits = [engine.submit(SampleRequest(seed=number, num_chain_steps=chosen.randint(1, 4))) for number in range(7)]
    for _ in range(chosen.randint(0, 9)):
        engine.step()
    assert engine.outlook(visits[0]).seconds != 0 or visits[0].is_over
    said = [
        calls_until(
            visit,
            [(guest.visit, 1) for guest in engine._guests],
            [(waiting, 1) for waiting, _ in engine._waiting],
            engine.max_batch,
        )[1]
        for visit in visits
    ]
    calls, ended = 0, {place: 0 for place, visit in enumerate(visits) if visit.is_over}
    while engine.step():
        calls += 1
        for place, visit in enumerate(visits):
            if visit.is_over:
                ended.setdefault(place, calls)
    assert [ended[place] for place in range(7)] == said
    assert said == sorted(said) or len(set(said)) > 1


def test_a_listener_gets_the_frames(tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "c", width=4, num_chain_steps=2)
    model = drl_dist.load(checkpoint)
    engine, heard = ServingEngine(model), []
    visit = engine.submit(SampleRequest(seed=3), heard.append)
    assert engine.outlook(visit) == (0, None)
    while engine.step():
        pass
    assert [frame.level for frame in heard] == list(range(model.num_levels, -1, -1)) and visit.is_over
    assert torch.equal(heard[-1].image, model.sample(1, seed=3)[0]) and engine.outlook(visit) == (0, 0.0)
