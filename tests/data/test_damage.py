"""Damaged data under the policy `substitute`: which images replace damaged ones, and that nothing else matters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_dist.common.errors import UserError
from drl_dist.config.tree import LoaderConfig
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, write_index
from drl_dist.data.order import SampleOrder
from drl_dist.data.shards import Sample, pack_shard
from drl_dist.data.stream import ShardStream
from drl_dist.data.substitutes import (
    SUBSTITUTES,
    DamageError,
    Substitute,
    format_substitutes,
    parse_substitutes,
    read_substitutes,
)
from tests.data.sets import pixels_of, sample_ids, sample_of, write_set
from tests.faulty_proxy import FaultyProxy

COUNTS = (16, 16, 16, 5)
FIRSTS = np.concatenate([[0], np.cumsum(COUNTS)[:-1]])
BATCH, STEPS = 8, 20
Taken = tuple[torch.Tensor, torch.Tensor, list[Substitute]]


def take(
    index: ShardIndex, *, rank: int = 0, world_size: int = 1, start: int = 0, steps: int = STEPS, **loader: object
) -> Taken:
    """Positions, images and substitutes of a rank's share."""
    config = LoaderConfig(**({"on_damage": "substitute", "window_shards": 2} | loader))  # pyright: ignore[reportArgumentType]
    with ShardStream(
        index, seed=3, batch_size=BATCH, rank=rank, world_size=world_size, start_position=start, loader=config
    ) as stream:
        batches = list(islice(stream, steps))
        assert sum(batch.bad_samples for batch in batches) == len(stream.substitutes)
        return (
            torch.cat([batch.positions for batch in batches]),
            torch.cat([batch.images for batch in batches]),
            list(stream.substitutes),
        )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1024])


def wrong_header(path: Path) -> None:
    """Of the second sample: a stock tar reader would drop it and all that follow without a word."""
    data = bytearray(path.read_bytes())
    data[3 * 512 : 3 * 512 + 16] = b"\xff" * 16
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, "no such file"),
    "truncated": (cut, r"\d+ bytes"),
    "flipped bit": (flip, "SHA-256 .*"),
    "damaged header": (wrong_header, "SHA-256 .*"),
}


@pytest.mark.parametrize("window_shards", [1, 2, 4])
@pytest.mark.parametrize("case", DAMAGE)
def test_sound_samples_stand_in_for_those_of_a_damaged_shard(case: str, window_shards: int, tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    _, whole, none = take(index, window_shards=window_shards)
    assert none == []
    spoil, reason = DAMAGE[case]
    spoil(tmp_path / index.shards[1].name)
    positions, images, substitutes = take(index, window_shards=window_shards)
    order = SampleOrder(COUNTS, 3, window_shards)
    found = order.locate(positions.numpy())
    bad = found.shard == 1
    assert torch.equal(images[~bad], whole[~bad])
    assert [one.position for one in substitutes] == positions.numpy()[bad].tolist() != []
    for one, image in zip(substitutes, images[bad], strict=True):
        place = int(np.flatnonzero(positions.numpy() == one.position)[0])
        _, shard, sample = next(choice for choice in order.replacements(one.position) if choice[1] != 1)
        assert (one.shard, one.sample) == (index.shards[1].name, int(found.sample[place]))
        assert (one.by_shard, one.by_sample) == (index.shards[shard].name, sample)
        assert np.array_equal(image.numpy(), pixels_of(int(FIRSTS[shard]) + sample))
        assert re.fullmatch(reason, one.reason)
    # Not one and the same image in place of a whole shard; a window may have five intact ones.
    assert len({(one.by_shard, one.by_sample) for one in substitutes}) >= 5


def test_neither_ranks_nor_a_new_start_change_anything(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    (tmp_path / index.shards[2].name).unlink()
    _, images, substitutes = take(index)
    for world_size in (2, 4):
        shares = [
            take(index, rank=rank, world_size=world_size, prefetch_batches=rank + 1) for rank in range(world_size)
        ]
        order = torch.cat([share[0] for share in shares]).argsort()
        assert torch.equal(torch.cat([share[1] for share in shares])[order], images)
        assert sorted(one for share in shares for one in share[2]) == substitutes
    _, rest, later = take(index, start=7 * BATCH, steps=STEPS - 7, decoded_mib=0.0)
    assert torch.equal(rest, images[7 * BATCH :])
    assert later == [one for one in substitutes if one.position >= 7 * BATCH] != substitutes


def test_a_single_damaged_image_is_replaced_alone(tmp_path: Path) -> None:
    samples = [sample_of(number) for number in range(16)]
    samples[4], samples[9] = Sample(4, samples[4].png[:-30] + bytes(30)), Sample(9, b"hello")
    data, row = pack_shard("toy-train-00000.tar", samples)
    assert row.sha256 == hashlib.sha256(data).hexdigest()
    Folder(str(tmp_path)).write(row.name, data)
    index = ShardIndex(url=str(tmp_path), name="toy", split="train", resolution=8, channels=1, shards=(row,))
    write_index(index)
    positions, images, substitutes = take(index, steps=2)
    wanted = SampleOrder((16,), 3, 2).locate(positions.numpy()).sample.tolist()
    shown = sample_ids(images.numpy())
    assert [want for want, got in zip(wanted, shown, strict=True) if want != got] == [one.sample for one in substitutes]
    assert sorted(one.sample for one in substitutes) == [4, 9]
    reasons = {one.sample: one.reason for one in substitutes}
    # The same words on every worker: no address of a buffer.
    assert reasons[9] == "a damaged image (UnidentifiedImageError: cannot identify image file)"
    assert "0x" not in reasons[4]


def test_what_is_damaged_does_not_depend_on_what_is_still_in_memory(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    loader = LoaderConfig(on_damage="substitute", window_shards=1, prefetch_batches=1)
    with ShardStream(index, seed=3, batch_size=BATCH, loader=loader) as stream:
        batches = iter(stream)
        assert not [batch for batch in islice(batches, 10) if batch.bad_samples]
        (tmp_path / index.shards[0].name).unlink()
        later = list(islice(batches, 20))
    expected = SampleOrder(COUNTS, 3, 1).locate(np.arange(20 * BATCH, 30 * BATCH)).shard == 0
    assert sum(batch.bad_samples for batch in later[10:]) == expected.sum() > 0


def test_no_intact_image_at_all_is_an_error(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    for shard in index.shards:
        (tmp_path / shard.name).unlink()
    with pytest.raises(UserError, match=rf"data {tmp_path}: got no intact sample"):
        take(index, steps=1)


def test_strict_is_the_default(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    flip(tmp_path / index.shards[2].name)
    assert LoaderConfig().on_damage == "strict"
    with pytest.raises(DamageError, match=rf"shard {tmp_path}/{index.shards[2].name}: got SHA-256"):
        take(index, on_damage="strict")


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path: Path) -> None:
    index = write_set(str(tmp_path), COUNTS)
    path = tmp_path / index.shards[2].name
    path.unlink()
    path.symlink_to(path.name)  # cannot be opened, by root either
    with pytest.raises(UserError, match=rf"shard {path}: got .*, expected a file that can be read") as caught:
        take(index)
    assert not isinstance(caught.value, DamageError)


def test_choices_begin_in_the_window_and_reach_every_shard() -> None:
    order = SampleOrder(COUNTS, 3, 2)
    for position in (0, 17, 52, 53, 3000):
        choices = list(order.replacements(position))
        window = int(order.locate(np.array([position])).window[0])
        here = [choice[1:] for choice in choices if choice[0] == window]
        shards = order.window_shards(window)
        assert {choice[0] for choice in choices[: len(here)]} == {window}
        assert sorted(here) == sorted((shard, sample) for shard in shards for sample in range(COUNTS[shard]))
        assert {choice[1] for choice in choices} == {0, 1, 2, 3}
    assert len({next(order.replacements(position)) for position in range(32)}) > 16


@pytest.mark.integration
def test_an_outage_is_no_damage(proxy: FaultyProxy, gcs_bucket: str, tmp_path: Path) -> None:
    index = write_set(f"{gcs_bucket}/toy", COUNTS)
    proxy.add("GET", index.shards[1].name, "error 403", times=1000)
    with pytest.raises(UserError, match=rf"storage {index.url}/{index.shards[1].name}: got OSError: Forbidden"):
        take(index, cache_dir=str(tmp_path))


@pytest.mark.integration
@pytest.mark.parametrize("window_shards", [1, 2])
def test_damage_in_a_bucket_is_the_same_as_on_a_disk(
    window_shards: int, proxy: FaultyProxy, gcs_bucket: str, tmp_path: Path
) -> None:
    local, index = write_set(str(tmp_path / "local"), COUNTS), write_set(f"{gcs_bucket}/toy", COUNTS)
    cut(tmp_path / "local" / local.shards[0].name)
    (tmp_path / "local" / local.shards[3].name).unlink()
    proxy.add("GET", local.shards[0].name, "truncated", times=1000)
    Folder(index.url).remove(local.shards[3].name)
    _, expected, expected_substitutes = take(local, window_shards=window_shards)
    _, images, substitutes = take(index, window_shards=window_shards, cache_dir=str(tmp_path / "cache"))
    assert torch.equal(images, expected)
    assert [one.position for one in substitutes] == [one.position for one in expected_substitutes]
    assert {one.reason for one in substitutes if one.shard == local.shards[3].name} == {"no such file"}


LINES = [Substitute(9, "a.tar", 1, "no such file", "b.tar", 4), Substitute(3, "a.tar", 0, "é", "b.tar", 2)]


def test_the_substitution_log_is_lines_in_order_and_is_cut_where_a_run_resumes(tmp_path: Path) -> None:
    text = format_substitutes(LINES)
    assert text.count(b"\n") == 2
    assert parse_substitutes(text, source="x") == sorted(LINES)
    assert read_substitutes(str(tmp_path), before=5) == []
    (tmp_path / SUBSTITUTES).write_bytes(text)
    assert read_substitutes(str(tmp_path)) == sorted(LINES)
    assert read_substitutes(str(tmp_path), before=9) == [LINES[1]]
    assert (tmp_path / SUBSTITUTES).read_bytes() == format_substitutes(LINES[1:])


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"7", b'{"position": 1}', format_substitutes(LINES[:1]).replace(b"9", b'"9"'), b"\xff", b""]
)
def test_a_damaged_substitution_log_is_refused(line: bytes, tmp_path: Path) -> None:
    (tmp_path / SUBSTITUTES).write_bytes(format_substitutes(LINES[:1]) + line + b"\n" + format_substitutes(LINES[1:]))
    with pytest.raises(UserError, match=rf"substitution log {tmp_path}/{SUBSTITUTES}: got line \d"):
        read_substitutes(str(tmp_path))
