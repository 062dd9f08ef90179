"""`ShardStream`: batches of images for one rank, decoded by threads ahead of the training step."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from drl_dist.common.amounts import counted
from drl_dist.common.batch import Batch
from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionKind
from drl_dist.config.tree import LoaderConfig
from drl_dist.data.cache import OpenShard, ShardCache
from drl_dist.data.decode import read_image, read_labelled
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex
from drl_dist.data.labels import blank, names_of
from drl_dist.data.order import Places, SampleOrder, flips, share
from drl_dist.data.substitutes import DamageError, Substitute

_FETCH_THREADS = 2
_DECODED_OVERHEAD = 400
"""Bytes that an array, its buffer and its entry in a dictionary take in addition to the pixels."""

_Decoded: TypeAlias = tuple[NDArray[np.uint8], NDArray[Any] | None]
"""Pixels, and the label if any is asked for."""


class ShardStream:
    """One rank's share of the endless stream of samples, from a start position onwards.

    Step k of the iteration yields the positions ``start_position + k * batch_size + i`` for the places i of the rank's
    `share`: any number of ranks reads the same stream. Close it, or use it as a context manager, to end its threads and
    release its shards. It can be iterated over only once.

    Args:
        index: the data set.
        seed: keys the order and the mirroring.
        batch_size: images per step over all ranks, at least `world_size`; if it is not a multiple of `world_size`, the
            first ranks take one image more than the others.
        rank: this rank.
        world_size: number of ranks.
        ranks_here: those on this machine, which share its cache.
        start_position: the first position of the stream; batch_size times the number of finished steps.
        horizontal_flip: mirror half of the images.
        loader: options of cache and prefetching.
        labels: kind of labels that batches have; none by default.

    Raises:
        UserError: the batch is smaller than the number of ranks, or the cache is too small for the shards in use at one
            time. Iterating raises it for a missing or damaged shard or image or, if the loader substitutes damaged
            samples, when no intact one is left.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        ranks_here: int = 1,
        start_position: int = 0,
        horizontal_flip: bool = False,
        loader: LoaderConfig | None = None,
        labels: ConditionKind = "none",
    ) -> None:
        loader = loader or LoaderConfig()
        if batch_size < world_size:
            raise UserError(
                "train.batch_size",
                got=batch_size,
                expected=f"an image for each of {counted(world_size, 'worker')}",
                remedy="change --num-workers or --train.batch-size",
            )
        self.index = index
        self._kind: ConditionKind = labels
        self.order = SampleOrder([shard.num_samples for shard in index.shards], seed, loader.window_shards)
        self._seed, self._batch_size, self._flip = seed, batch_size, horizontal_flip
        self._share = share(batch_size, rank, world_size)
        self._next_position = start_position
        self._prefetch = max(1, loader.prefetch_batches)
        self.substitutes: list[Substitute] = []
        """Substitutes in the batches taken so far; callers may clear the list."""
        self._substitutes_damage = loader.on_damage == "substitute"
        self._spare_shards = loader.window_shards
        self._spare: dict[int, OpenShard | DamageError] = {}
        self._spare_lock = threading.Lock()
        self._check_cache_size(loader, ranks_here)
        self._cache = ShardCache(index.url, cache_dir=loader.cache_dir, max_bytes=int(loader.cache_gib * 2**30))
        self._decoded: dict[tuple[int, int], _Decoded] = {}
        image_bytes = index.channels * index.resolution**2 + _DECODED_OVERHEAD
        self._max_decoded = int(loader.decoded_mib * 2**20 / image_bytes)
        self._closed = threading.Event()
        self._windows: dict[int, dict[int, Future[OpenShard]]] = {}
        self._ahead: deque[tuple[int, Future[tuple[Batch, list[Substitute]]]]] = deque()
        self._decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch")

    def __iter__(self) -> Iterator[Batch]:
        while not self._closed.is_set():
            while len(self._ahead) < self._prefetch:
                self._submit()
            oldest_window, future = self._ahead.popleft()
            self._drop_windows(before=oldest_window)
            try:
                batch, substitutes = future.result()
            except CancelledError:
                return
            self.substitutes += substitutes
            yield batch

    def close(self) -> None:
        """End the threads and release the shards. Closing twice is harmless."""
        self._closed.set()
        for _, future in self._ahead:
            future.cancel()
        for shards in self._windows.values():
            for opening in shards.values():
                opening.cancel()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._fetchers.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._drop_windows(before=None)
        self._drop_spares(keep=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self) -> None:
        positions = self._next_position + self._share
        self._next_position += self._batch_size
        places = self.order.locate(positions)
        first, last = int(places.window[0]), int(places.window[-1])
        # A batch may be larger than a window. Then this rank's next share is not in the window behind this one.
        ahead = self.order.windows(self._next_position + self._share[[0, -1]])
        next_first, next_last = (max(last + 1, int(window)) for window in ahead)
        for window in (*range(first, last + 1), *range(next_first, next_last + 1)):
            if window not in self._windows:
                self._windows[window] = {
                    int(shard): self._fetchers.submit(self._open, int(shard), window > last)
                    for shard in self.order.window_shards(window)
                }
        shards = {window: self._windows[window] for window in range(first, last + 1)}
        self._ahead.append((first, self._decoders.submit(self._load, positions, places, shards)))

    def _open(self, shard: int, ahead_of_need: bool) -> OpenShard:
        # Shards that are not needed yet wait for room without a deadline.
        return self._cache.open(self.index.shards[shard], patient=ahead_of_need, stop=self._stopped)

    def _stopped(self) -> bool:
        # At exit the interpreter joins these threads even if the stream was not closed, so they must end by themselves.
        return self._closed.is_set() or not threading.main_thread().is_alive()

    def _load(
        self, positions: np.ndarray, places: Places, windows: dict[int, dict[int, Future[OpenShard]]]
    ) -> tuple[Batch, list[Substitute]]:
        size = self.index.resolution
        images = np.empty((len(positions), self.index.channels, size, size), dtype=np.uint8)
        labels = blank(len(positions), self._kind, len(names_of(self.index, self._kind)))
        substitutes: list[Substitute] = []
        mirrored = flips(positions, self._seed) if self._flip else np.zeros(len(positions), dtype=bool)
        for row in range(len(positions)):
            if self._stopped():
                raise CancelledError
            shard, sample = int(places.shard[row]), int(places.sample[row])
            try:
                pixels, label = self._image(shard, sample, windows[int(places.window[row])][shard].result)
            except DamageError as damage:
                if not self._substitutes_damage:
                    raise
                (pixels, label), by_shard, by_sample = self._replacement(int(positions[row]), windows)
                names = self.index.shards[shard].name, self.index.shards[by_shard].name
                substitutes.append(
                    Substitute(int(positions[row]), names[0], sample, str(damage.got), names[1], by_sample)
                )
            images[row] = pixels[:, :, ::-1] if mirrored[row] else pixels
            if labels is not None:
                labels[row] = label
        batch = Batch(
            torch.from_numpy(images),
            torch.from_numpy(positions),
            len(substitutes),
            None if labels is None else torch.from_numpy(labels),
        )
        return batch, substitutes

    def _replacement(
        self, position: int, windows: dict[int, dict[int, Future[OpenShard]]]
    ) -> tuple[_Decoded, int, int]:
        """The first intact image that may replace the one at a position, with its own label; its shard and sample."""
        for window, shard, sample in self.order.replacements(position):
            if self._stopped():
                raise CancelledError
            try:
                if window in windows:
                    return self._image(shard, sample, windows[window][shard].result), shard, sample
                # The position's own window is entirely damaged. A spare shard may be closed once the lock is released.
                with self._spare_lock:
                    return self._image(shard, sample, partial(self._open_spare, shard)), shard, sample
            except DamageError:
                continue
        raise UserError(
            f"data {self.index.url}", got="no intact sample", expected="one at least", remedy="prepare the data again"
        )

    def _open_spare(self, shard: int) -> OpenShard:
        spare = self._spare.pop(shard, None)
        if spare is None:
            self._drop_spares(keep=self._spare_shards - 1)
            try:
                spare = self._cache.open(self.index.shards[shard], stop=self._stopped)
            except DamageError as damage:
                spare = damage
        # Inserted last: spares are dropped in order of last use.
        self._spare[shard] = spare
        if isinstance(spare, DamageError):
            raise spare
        return spare

    def _drop_spares(self, *, keep: int) -> None:
        while len(self._spare) > keep:
            spare = self._spare.pop(next(iter(self._spare)))
            if isinstance(spare, OpenShard):
                spare.close()

    def _image(self, shard: int, sample: int, opened: Callable[[], OpenShard]) -> _Decoded:
        if self._substitutes_damage:
            # A damaged shard must count as damaged even if its images are still in memory.
            opened()
        decoded = self._decoded.get((shard, sample))
        if decoded is None:
            if self._kind == "none":
                decoded = read_image(opened(), sample, self.index), None
            else:
                decoded = read_labelled(opened(), sample, self.index, self._kind)
            if len(self._decoded) < self._max_decoded:
                self._decoded[shard, sample] = decoded
        return decoded

    def _drop_windows(self, *, before: int | None) -> None:
        for window in [number for number in self._windows if before is None or number < before]:
            for opening in self._windows.pop(window).values():
                opening.cancel()
                opening.add_done_callback(_close_shard)

    def _check_cache_size(self, loader: LoaderConfig, ranks_here: int) -> None:
        # Upper bound: the slowest rank's window, those that prefetched batches reach into, the next one, and spares;
        # where a batch of all is larger than windows, those that the shares of this machine's ranks are in.
        counts = sorted(shard.num_samples for shard in self.index.shards)
        smallest_window = max(1, sum(counts[: loader.window_shards]))
        reached = 3 + (self._prefetch + 1) * self._batch_size // smallest_window
        own = (self._prefetch + 2) * (2 + len(self._share) // smallest_window)
        windows = min(reached, ranks_here * own) + self._substitutes_damage
        sizes = sorted((shard.size for shard in self.index.shards), reverse=True)
        needed = sum(sizes[: windows * loader.window_shards])
        if needed > loader.cache_gib * 2**30 and Folder(self.index.url).local is None:
            raise UserError(
                "loader.cache_gib",
                got=loader.cache_gib,
                expected=f"at least {needed / 2**30:.3f}",
                remedy="raise it, or lower loader.window_shards",
            )


def _close_shard(opening: Future[OpenShard]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
