"""The order of samples against a plain reading of its definition, known answers, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from drl_dist.data.order import SampleOrder, flips, share

COUNTS = (3, 4, 5, 2, 7)
KNOWN_PLACES = [
    (2, 4),
    (2, 3),
    (1, 2),
    (1, 0),
    (1, 1),
    (2, 0),
    (2, 2),
    (2, 1),
    (1, 3),
    (0, 1),
    (0, 2),
    (0, 0),
    (2, 1),
    (2, 4),
    (0, 2),
]
KNOWN_FLIPS = [0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0]


def plain_pass(counts: tuple[int, ...], seed: int, number: int, window_shards: int) -> list[tuple[int, int]]:
    """One pass by sorting (random word, place) pairs, straight from the definition."""

    def shuffled(items: list[tuple[int, int]], index: int, stage: int) -> list[tuple[int, int]]:
        words = np.random.Philox(key=[seed, int.from_bytes(b"order")], counter=[0, stage, index, number])
        return [item for _, item in sorted((int(words.random_raw()), item) for item in items)]

    shards = [shard for _, shard in shuffled([(0, shard) for shard in range(len(counts))], 0, 0)]
    result: list[tuple[int, int]] = []
    for index in range(0, len(shards), window_shards):
        inside = [(shard, sample) for shard in shards[index : index + window_shards] for sample in range(counts[shard])]
        result += shuffled(inside, index // window_shards, 1)
    return result


def places(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int]]:
    found = order.locate(np.arange(start, stop))
    return list(zip(found.shard.tolist(), found.sample.tolist(), strict=True))


@pytest.mark.parametrize("window_shards", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_is_what_its_definition_says(seed: int, window_shards: int) -> None:
    order = SampleOrder(COUNTS, seed, window_shards)
    expected = [place for number in range(3) for place in plain_pass(COUNTS, seed, number, window_shards)]
    assert places(order, 0, 3 * sum(COUNTS)) == expected


def test_stays_the_same_for_ever() -> None:
    # Recorded once: a change here would silently reorder every resumed run.
    order = SampleOrder((3, 4, 5), 0, 2)
    assert places(order, 0, 15) == KNOWN_PLACES
    assert flips(np.arange(16), 0).astype(int).tolist() == KNOWN_FLIPS


def test_every_pass_holds_every_sample_once_and_differs_from_the_last() -> None:
    order = SampleOrder(COUNTS, 3, 2)
    size = sum(COUNTS)
    passes = [places(order, number * size, (number + 1) * size) for number in range(20)]
    everything = sorted((shard, sample) for shard, count in enumerate(COUNTS) for sample in range(count))
    assert all(sorted(one) == everything for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)


def test_a_window_needs_only_its_own_shards() -> None:
    order = SampleOrder(COUNTS, 5, 2)
    found = order.locate(np.arange(4 * sum(COUNTS)))
    assert order.windows_per_pass == 3
    assert np.all(np.diff(found.window) >= 0)
    assert found.window[-1] == 4 * 3 - 1
    for window in range(12):
        assert set(found.shard[found.window == window]) == set(order.window_shards(window))


def test_windows_are_known_without_their_samples() -> None:
    order = SampleOrder(COUNTS, 5, 2)
    positions = np.arange(4 * sum(COUNTS))[::-1]
    assert np.array_equal(order.windows(positions), order.locate(positions).window)
    fresh = SampleOrder(COUNTS, 5, 2)
    fresh.windows(positions)
    assert fresh._window_places.cache_info().misses == 0


def test_shares_are_consecutive_and_differ_by_one_at_most() -> None:
    assert [share(10, rank, 4).tolist() for rank in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    assert share(7, 0, 1).tolist() == list(range(7))


def test_any_positions_in_any_order() -> None:
    order = SampleOrder(COUNTS, 11, 2)
    positions = np.random.Generator(np.random.PCG64(0)).integers(0, 10 * sum(COUNTS), 300)
    found = order.locate(positions)
    everything = places(order, 0, 10 * sum(COUNTS))
    assert [everything[position] for position in positions] == list(
        zip(found.shard.tolist(), found.sample.tolist(), strict=True)
    )


def test_first_place_is_uniform() -> None:
    # 2000 seeds, 4 equally likely samples: each count within five standard errors of 500.
    firsts = [places(SampleOrder((2, 2), seed, 2), 0, 1)[0] for seed in range(2000)]
    counts = [firsts.count(place) for place in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(abs(count - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75) for count in counts)


def test_flips_are_a_fair_coin_keyed_by_seed_and_position() -> None:
    positions = np.arange(40_000)
    first, second = flips(positions, 0), flips(positions, 1)
    for coins in (first, second, first ^ second, first[1:] ^ first[:-1]):
        assert abs(coins.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(coins))
    assert np.array_equal(flips(positions[::3], 0), first[::3])
    assert flips(np.array([2**40, 2**62]), 5).shape == (2,)
