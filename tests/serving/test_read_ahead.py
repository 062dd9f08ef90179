"""Noise that is read ahead is the same, takes few draws, and does not fill memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from drl_dist.diffusion.noise import Noise, PhiloxNoise, Purpose
from drl_dist.sampling.interpolation import InterpolatedNoise
from drl_dist.serving.read_ahead import ReadAhead


class Counting:
    """A source that counts draws, and the most numbers of one."""

    def __init__(self, noise: Noise) -> None:
        self.noise, self.num_draws, self.most = noise, 0, 0

    def normal(
        self,
        purpose: Purpose,
        sample_ids: Tensor,
        level: Tensor | int,
        chain_steps: Sequence[int],
        shape: Sequence[int],
    ) -> Tensor:
        values = self.noise.normal(purpose, sample_ids, level, chain_steps, shape)
        self.num_draws, self.most = self.num_draws + 1, max(self.most, values.numel())
        return values

    def uniform(
        self, purpose: Purpose, sample_ids: Tensor, level: Tensor | int, chain_steps: Sequence[int], count: int
    ) -> Tensor:
        return self.noise.uniform(purpose, sample_ids, level, chain_steps, count)


def sources() -> list[tuple[Noise, int]]:
    between = InterpolatedNoise(PhiloxNoise(3), torch.tensor([4]), torch.tensor([7]), torch.tensor([0.3]))
    return [(PhiloxNoise(3), 5), (between, 0)]


@pytest.mark.parametrize(("noise", "number"), sources(), ids=["generated", "between"])
def test_numbers_are_those_of_the_source(noise: Noise, number: int) -> None:
    counting, ids, shape = Counting(noise), torch.tensor([number]), (3, 5, 5)
    ahead = ReadAhead(counting)
    for t in reversed(range(40)):
        for purpose, steps in ((Purpose.SAMPLE_START, (0,)), (Purpose.SAMPLE_CHAIN, range(t % 2, 9 + t % 2))):
            for level in (t, torch.tensor([t])):
                expected = noise.normal(purpose, ids, t, steps, shape)
                assert torch.equal(ahead.normal(purpose, ids, level, steps, shape), expected)
    # Of the start once; of nine steps, which begin at 0 or 1, once each: all 40 levels have fewer than 2**16 numbers.
    assert counting.num_draws == 3
    assert torch.equal(
        ahead.uniform(Purpose.CHOICE, ids, 2, (1, 2), 3), noise.uniform(Purpose.CHOICE, ids, 2, (1, 2), 3)
    )


def test_what_is_held_is_bounded() -> None:
    counting, ids = Counting(PhiloxNoise(0)), torch.tensor([0])
    ahead = ReadAhead(counting)
    for t in reversed(range(1000)):
        ahead.normal(Purpose.SAMPLE_START, ids, t, (0,), (3, 32, 32))
    assert counting.most <= 1 << 16 and counting.num_draws == -(-1000 // 21)
    for number in range(50):
        ahead.normal(Purpose.SAMPLE_CHAIN, ids, 999, (number,), (3, 32, 32))
    assert sum(values.numel() for _, values in ahead._held.values()) <= 16 << 16
    # A single draw that is larger than that is not held at all.
    before = len(ahead._held)
    ReadAhead(counting).normal(Purpose.PRIOR, ids, 5, (0,), (3, 256, 256))
    assert len(ahead._held) == before
