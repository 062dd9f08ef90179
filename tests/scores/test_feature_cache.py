"""Features are computed once for the same images and the same network, and never taken for those of others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_dist.common.errors import UserError
from drl_dist.data.cache import ShardCache
from drl_dist.data.index import ShardIndex, open_index, write_index
from drl_dist.data.shards import pack_shard
from drl_dist.data.subset import image_batches, spread
from drl_dist.evaluation.feature_cache import cached_features
from drl_dist.evaluation.features import FeatureNetwork, Features
from tests.data.sets import pixels_of, sample_ids, sample_of, write_set


class Counting:
    """A network that counts the images it is shown."""

    def __init__(self, identity: str = "one") -> None:
        self.seen = 0
        self.network = FeatureNetwork(identity, identity, 1, torch.device("cpu"), self.extract)

    def extract(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += len(images)
        pixels = images.float().flatten(1)
        return pixels[:, :4], pixels[:, 4:6]


def take(index: ShardIndex, network: FeatureNetwork, cache: Path, count: int = 40) -> Features:
    return cached_features(index, count, network, cache_dir=cache, batch_size=16, what="test images")


def assert_equal(one: Features, other: Features) -> None:
    assert one.logits is not None and other.logits is not None
    assert torch.equal(one.values, other.values) and torch.equal(one.logits, other.logits)


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    write_set(str(tmp_path / "data"))
    return open_index(str(tmp_path / "data"))


def test_the_second_call_computes_nothing(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counting = Counting()
    first = take(index, counting.network, tmp_path / "cache")
    assert (counting.seen, len(first)) == (40, 40)
    assert "features of test images: 40/40 images" in capsys.readouterr().err
    # Nor does it read a shard.
    monkeypatch.setattr(ShardCache, "open", lambda *given, **options: pytest.fail("a shard was opened"))
    second = take(index, counting.network, tmp_path / "cache")
    assert counting.seen == 40
    assert_equal(first, second)


def test_other_images_networks_and_counts_have_features_of_their_own(index: ShardIndex, tmp_path: Path) -> None:
    cache, counting = tmp_path / "cache", Counting()
    take(index, counting.network, cache)
    take(index, counting.network, cache, count=41)
    assert counting.seen == 81
    another = Counting("another")
    take(index, another.network, cache)
    assert another.seen == 40
    # The same folder, in which one image of the last shard is another.
    samples = [sample_of(number) for number in (48, 49, 50, 51)] + [dataclasses.replace(sample_of(99), sample_id=52)]
    data, row = pack_shard(index.shards[-1].name, samples)
    (tmp_path / "data" / row.name).write_bytes(data)
    write_index(dataclasses.replace(index, shards=(*index.shards[:-1], row)))
    take(open_index(str(tmp_path / "data")), counting.network, cache)
    assert counting.seen == 121
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("place", ["start", "middle", "last byte", "cut", "empty"])
def test_a_damaged_file_is_made_again(
    index: ShardIndex, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counting = Counting()
    first = take(index, counting.network, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    data = bytearray(path.read_bytes())
    if place in ("start", "middle", "last byte"):
        data[{"start": 9, "middle": len(data) // 2, "last byte": len(data) - 1}[place]] ^= 1
    path.write_bytes(b"" if place == "empty" else data[:-8] if place == "cut" else data)
    assert_equal(first, take(index, counting.network, tmp_path / "cache"))
    assert counting.seen == 80
    assert "its features are computed again" in capsys.readouterr().err
    assert_equal(first, take(index, counting.network, tmp_path / "cache"))
    assert counting.seen == 80


def test_features_under_anothers_name_are_not_taken(index: ShardIndex, tmp_path: Path) -> None:
    one, another = Counting(), Counting("another")
    take(index, one.network, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    take(index, another.network, tmp_path / "cache")
    (other,) = set((tmp_path / "cache").iterdir()) - {path}
    other.write_bytes(path.read_bytes())
    take(index, another.network, tmp_path / "cache")
    assert another.seen == 80


def test_images_are_spread_over_the_whole_set(index: ShardIndex) -> None:
    assert spread(10, 10).tolist() == list(range(10))
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    for total, count in ((53, 40), (10**12, 7), (50_000, 49_999)):
        chosen = spread(total, count)
        assert len(chosen) == count and np.all(np.diff(chosen) >= total // count)
        assert chosen[0] >= 0 and chosen[-1] < total and total - chosen[-1] <= -(-total // count)
    batches = list(image_batches(index, 40, 16))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    together = torch.cat(batches).numpy()
    assert sample_ids(together) == spread(53, 40).tolist()
    assert all(np.array_equal(image, pixels_of(number)) for image, number in zip(together, spread(53, 40), strict=True))


def test_a_damaged_shard_is_named(index: ShardIndex, tmp_path: Path) -> None:
    shard = tmp_path / "data" / index.shards[2].name
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"shard {shard}: got SHA-256"):
        take(index, Counting().network, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
