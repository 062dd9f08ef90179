"""The order of samples: a pure function of seed and position, the same on every machine.

Position p of the endless stream is place p mod N of pass p // N over the N samples. In each pass the shards are
permuted and divided into windows of a few consecutive shards, and the samples of each window are permuted among
themselves, so a worker needs only two windows of shards at a time. Each step takes the next positions, as many as its
batch has, and each rank a run of consecutive ones (`share`): the stream is the same for any number of workers, and a
rank of many needs the shards of its own run alone, however large the batch of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_STAGE_SHARDS, _STAGE_WINDOW, _KEY_ORDER = 0, 1, 0x6F72646572  # "order"
_KEY_FLIP = np.uint64(0x666C6970)  # "flip"
_KEY_REPLACE = np.uint64(0x7265706C)  # "repl"


@dataclass(frozen=True)
class Places:
    """Shard, sample and window of positions of the stream; every array has shape (n,) and dtype int64."""

    shard: NDArray[np.int64]
    """Number of the shard in the index."""
    sample: NDArray[np.int64]
    """Number of the sample in the shard."""
    window: NDArray[np.int64]
    """Number of the window, counted through all passes."""


class SampleOrder:
    """The order of the samples of a sequence of shards.

    Args:
        counts: number of samples of each shard, at least 1.
        seed: any number in [0, 2**63).
        window_shards: shards per window, whose samples are mixed with each other.
    """

    def __init__(self, counts: Sequence[int], seed: int, window_shards: int) -> None:
        self._counts = np.asarray(counts, dtype=np.int64)
        self._seed, self._window_shards = seed, window_shards
        self.num_samples = int(self._counts.sum())
        self.windows_per_pass = -(-len(self._counts) // window_shards)
        # Only a few windows are in use at a time; each takes 16 bytes per sample.
        self._pass_layout = lru_cache(maxsize=4)(self._compute_pass_layout)
        self._window_places = lru_cache(maxsize=8)(self._compute_window_places)

    def locate(self, positions: NDArray[np.int64]) -> Places:
        """Shard, sample and window of positions (n,) of the stream."""
        positions = np.asarray(positions, dtype=np.int64)
        shard, sample, window = (np.empty(positions.shape, dtype=np.int64) for _ in range(3))
        passes, places = np.divmod(positions, self.num_samples)
        for number in np.unique(passes):
            here = np.flatnonzero(passes == number)
            _, starts = self._pass_layout(int(number))
            local = np.searchsorted(starts, places[here], side="right") - 1
            window[here] = number * self.windows_per_pass + local
            for index in np.unique(local):
                inside = here[local == index]
                shards, samples = self._window_places(int(number), int(index))
                shard[inside] = shards[places[inside] - starts[index]]
                sample[inside] = samples[places[inside] - starts[index]]
        return Places(shard, sample, window)

    def windows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows (n,) of positions (n,), as of `locate`; no sample is looked up for it."""
        passes, places = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        found = np.empty(passes.shape, dtype=np.int64)
        for number in np.unique(passes):
            here = passes == number
            _, starts = self._pass_layout(int(number))
            local = np.searchsorted(starts, places[here], side="right") - 1
            found[here] = number * self.windows_per_pass + local
        return found

    def replacements(self, position: int) -> Iterator[tuple[int, int, int]]:
        """Window, shard and sample of each candidate to replace the sample at a position, in order of preference.

        First come the samples of the position's own window, whose shards are open anyway, starting at a place keyed by
        seed and position, so that replacements of a damaged shard's samples are spread over the intact ones; then those
        of later windows, until every shard has been a candidate. The order depends on seed and position only.
        """
        first = int(self.windows(np.array([position]))[0])
        key = int(_keyed(np.array([position]), self._seed, _KEY_REPLACE)[0])
        for window in range(first, first + 2 * self.windows_per_pass):
            shards, samples = self._window_places(*divmod(window, self.windows_per_pass))
            for tried in range(len(shards)):
                chosen = (key + tried) % len(shards)
                yield window, int(shards[chosen]), int(samples[chosen])

    def window_shards(self, window: int) -> NDArray[np.int64]:
        """The shards (k,) of a window, counted through all passes."""
        number, index = divmod(window, self.windows_per_pass)
        permutation, _ = self._pass_layout(number)
        return permutation[index * self._window_shards : (index + 1) * self._window_shards]

    def _compute_pass_layout(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        permutation = _permutation(len(self._counts), self._seed, number, 0, _STAGE_SHARDS)
        ends = np.cumsum(self._counts[permutation])
        firsts = np.arange(0, len(permutation), self._window_shards)
        return permutation, np.where(firsts > 0, ends[firsts - 1], 0)

    def _compute_window_places(self, number: int, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shards = self.window_shards(number * self.windows_per_pass + index)
        counts = self._counts[shards]
        order = _permutation(int(counts.sum()), self._seed, number, index, _STAGE_WINDOW)
        samples = np.concatenate([np.arange(count) for count in counts])
        return np.repeat(shards, counts)[order], samples[order]


def share(batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """A rank's consecutive places (n,) in the batch of all, from 0 on; the first ranks take one more if they must."""
    each, more = divmod(batch_size, world_size)
    start = rank * each + min(rank, more)
    return np.arange(start, start + each + (rank < more), dtype=np.int64)


def flips(positions: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Whether the image at each position (n,) is mirrored: a fair coin keyed by seed and position."""
    return _keyed(np.asarray(positions), seed, _KEY_FLIP) >> np.uint64(63) == 1


def _keyed(positions: NDArray[np.int64], seed: int, purpose: np.uint64) -> NDArray[np.uint64]:
    return _mix(_mix(positions.astype(np.uint64)) ^ _mix(np.uint64(seed) ^ purpose))


def _permutation(length: int, seed: int, number: int, index: int, stage: int) -> NDArray[np.int64]:
    # Raw Philox words are stable across numpy versions; Generator methods may change between them.
    words = np.random.Philox(key=[seed, _KEY_ORDER], counter=[0, stage, index, number]).random_raw(length)
    return np.argsort(words, kind="stable").astype(np.int64)


def _mix(words: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    # The finaliser of SplitMix64 (Steele, Lea, Flood 2014), whose products overflow on purpose.
    words = np.atleast_1d(words) + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
