"""Keyed noise: published vectors, distributions, and independence of who asks."""

from __future__ import annotations

import math

import pytest
import torch

from drl_dist.diffusion.noise import PhiloxNoise, Purpose, philox

# Known-answer vectors of Philox4x32-10 published with Random123: (counter, key) -> words.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    first, second, third, fourth = counter
    drawn = philox((torch.tensor(first), torch.tensor(second), torch.tensor(third), torch.tensor(fourth)), key)
    assert tuple(int(word) for word in drawn) == words


def test_a_sample_does_not_depend_on_its_batch_or_on_how_steps_are_grouped() -> None:
    noise = PhiloxNoise(5)
    ids, levels = torch.tensor([3, 9, 2**40]), torch.tensor([0, 4, 2])
    together = noise.normal(Purpose.TRAIN_CHAIN, ids, levels, (0, 1, 2), (3, 5, 5))
    for place in range(3):
        for step in range(3):
            alone = noise.normal(
                Purpose.TRAIN_CHAIN, ids[place : place + 1], levels[place : place + 1], (step,), (3, 5, 5)
            )
            assert torch.equal(alone[0, 0], together[step, place])


def test_uniforms_do_not_depend_on_how_many_are_drawn() -> None:
    noise, ids = PhiloxNoise(5), torch.tensor([3, 9])
    many = noise.uniform(Purpose.CHOICE, ids, 1, (4, 5), 7)
    assert torch.equal(noise.uniform(Purpose.CHOICE, ids[1:], 1, (5,), 2)[0, 0], many[1, 1, :2])


def test_every_part_of_the_address_matters() -> None:
    ids = torch.tensor([1])
    base = PhiloxNoise(0).normal(Purpose.BASE, ids, 0, (0,), (8,))
    others = [
        PhiloxNoise(1).normal(Purpose.BASE, ids, 0, (0,), (8,)),
        PhiloxNoise(2**32).normal(Purpose.BASE, ids, 0, (0,), (8,)),
        PhiloxNoise(0).normal(Purpose.PRIOR, ids, 0, (0,), (8,)),
        PhiloxNoise(0).normal(Purpose.BASE, ids + 1, 0, (0,), (8,)),
        PhiloxNoise(0).normal(Purpose.BASE, ids + 2**33, 0, (0,), (8,)),
        PhiloxNoise(0).normal(Purpose.BASE, ids, 1, (0,), (8,)),
        PhiloxNoise(0).normal(Purpose.BASE, ids, 0, (1,), (8,)),
    ]
    drawn = torch.stack([base, *others]).flatten(1)
    assert len({tuple(row) for row in drawn.tolist()}) == len(drawn)


@pytest.mark.parametrize("seed", range(3))
def test_normals_are_standard_and_uncorrelated(seed: int) -> None:
    numbers = PhiloxNoise(seed).normal(Purpose.PRIOR, torch.arange(2000), 0, (0,), (50,))[0].double()
    count = numbers.numel()
    # Five standard errors of the first four moments and of the correlation between neighbours.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(numbers.pow(power).mean() - expected) < 5 * math.sqrt(variance / count)
    assert abs((numbers[:, 1:] * numbers[:, :-1]).mean()) < 5 / math.sqrt(count)
    assert abs((numbers[1:] * numbers[:-1]).mean()) < 5 / math.sqrt(count)


def test_uniforms_fill_the_unit_interval() -> None:
    drawn = PhiloxNoise(0).uniform(Purpose.CHOICE, torch.arange(1000), 2, range(10), 6)
    assert drawn.shape == (10, 1000, 6)
    assert drawn.unique().numel() == drawn.numel()
    numbers = drawn.flatten()
    assert 0 < numbers.min() < numbers.max() < 1
    counts = torch.histc(numbers, bins=6, min=0, max=1)
    assert ((counts - 10_000).square() / 10_000).sum() < 25  # chi-square with 5 degrees of freedom, p ~ 1e-4


def test_addresses_beyond_the_counter_are_refused() -> None:
    with pytest.raises(ValueError, match="chain steps"):
        PhiloxNoise(0).normal(Purpose.BASE, torch.tensor([0]), 0, (1 << 20,), (1,))
    with pytest.raises(ValueError, match="level"):
        PhiloxNoise(0).normal(Purpose.BASE, torch.tensor([0]), 4096, (0,), (1,))
