"""Statistics of pixels: right, exact in any order, kept in the index beside the fingerprint, and checked when read."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets_prep import _build
from drl_dist.common.errors import UserError
from drl_dist.data.decode import read_images
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, open_index, write_index
from drl_dist.data.pixels.statistics import PixelStatistics, PixelSums, measure_images, total
from tests.data.published import encoded, photo
from tests.data.sets import rewritten, write_set
from tests.helpers.preparation import prepare


def made_up(count: int, channels: int, resolution: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images (N, C, R, R) of different brightness, darker at the top."""
    generator = np.random.Generator(np.random.PCG64(seed))
    brightness = generator.integers(0, 156, (count, 1, 1, 1))
    slope = np.linspace(0, 90, resolution)[:, None]
    return (brightness + slope + generator.integers(0, 10, (count, channels, resolution, resolution))).astype(np.uint8)


def by_numpy(images: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Mean, standard deviation, and second moments along the constant and the mean image."""
    x = images.reshape(len(images), -1) / 127.5 - 1
    return x.mean(), x.std(), x.shape[1] * np.square(x.mean(1)).mean(), np.square(x.mean(0)).sum()


@pytest.mark.parametrize(("count", "channels", "resolution"), [(1, 1, 1), (7, 1, 8), (300, 3, 5), (40, 3, 32)])
def test_they_are_those_of_numpy(count: int, channels: int, resolution: int) -> None:
    images = made_up(count, channels, resolution)
    mean, std, constant, mean_image = by_numpy(images)
    found = measure_images(images, batch_size=256)
    got = (found.mean, found.std, found.largest_variance)
    assert got == pytest.approx((mean, std, max(constant, mean_image)), rel=1e-12, abs=1e-14)
    assert found.root_mean_square == pytest.approx(np.sqrt(np.square(images / 127.5 - 1).mean()), rel=1e-12)


def test_either_direction_can_be_the_larger_one_and_none_is_larger_than_the_largest() -> None:
    # Images of one brightness each, as often bright as dark: no mean image, but a constant direction.
    flat = np.repeat([0, 255], 8).astype(np.uint8).reshape(16, 1, 1, 1) * np.ones((1, 1, 4, 4), np.uint8)
    # A half that is always bright beside one that is always dark: no brightness, but a mean image.
    halves = np.broadcast_to(np.repeat([0, 255], 8).astype(np.uint8).reshape(1, 1, 4, 4), (16, 1, 4, 4))
    for images, larger in ((flat, 2), (halves, 3)):
        moments = by_numpy(images)
        assert moments[larger] == pytest.approx(16) and moments[5 - larger] == pytest.approx(0, abs=1e-9)
        assert measure_images(images).largest_variance == pytest.approx(16, rel=1e-12)
    images = made_up(50, 1, 8)
    x = images.reshape(50, -1) / 127.5 - 1
    assert measure_images(images).largest_variance <= np.linalg.eigvalsh(x.T @ x / 50)[-1]


@pytest.mark.parametrize("resolution", [64, 45])
def test_larger_mean_images_are_counted_in_blocks(resolution: int) -> None:
    generator, slope = np.random.Generator(np.random.PCG64(0)), np.linspace(0, 205, resolution)[:, None]
    images = (slope + generator.integers(0, 50, (20, 3, resolution, resolution))).astype(np.uint8)
    edges = [number * resolution // 32 for number in range(33)]
    blocked = np.zeros(images.shape[1:])
    mean_image = images.mean(0) / 127.5 - 1
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            here = np.s_[:, top:bottom, left:right]
            blocked[here] = mean_image[here].mean((1, 2), keepdims=True)
    assert np.square(blocked).sum() > by_numpy(images)[2], "else the mean image would not be seen"
    found = measure_images(images)
    assert found.largest_variance == pytest.approx(np.square(blocked).sum(), rel=1e-12)
    assert 0.95 * by_numpy(images)[3] < found.largest_variance <= by_numpy(images)[3]
    assert PixelSums.of(images).blocks.shape == (3, 32, 32)


def test_parts_add_up_bit_for_bit_in_any_order() -> None:
    images = made_up(31, 3, 9)
    whole = measure_images(images)
    parts = [PixelSums.of(one[None]) for one in images]
    for order in (range(31), reversed(range(31)), np.random.Generator(np.random.PCG64(1)).permutation(31)):
        sums = total((parts[place] for place in order), 3, 9)
        again = PixelSums.from_json(json.loads(json.dumps(sums.as_json())), 3, 9)
        assert again.statistics(9) == whole
    assert measure_images(images, batch_size=4) == whole


def test_the_index_keeps_them_and_its_fingerprint_stays(tmp_path: Path) -> None:
    bare = write_set(str(tmp_path))
    assert open_index(str(tmp_path)).statistics is None
    measured = dataclasses.replace(bare, statistics=measure_images(read_images(bare, 99).numpy()))
    write_index(measured)
    found = open_index(str(tmp_path))
    assert found.statistics == measured.statistics and found.statistics is not None
    assert found.fingerprint == measured.fingerprint == bare.fingerprint
    other = dataclasses.replace(measured, statistics=dataclasses.replace(found.statistics, mean=0.0))
    assert other.fingerprint == bare.fingerprint


def _altered(index: ShardIndex, **values: Any) -> None:
    """Write the index with other statistics and the checksum of them."""
    statistics = dataclasses.replace(index.statistics, **values)  # pyright: ignore
    write_index(dataclasses.replace(index, statistics=statistics))


DAMAGED: dict[str, dict[str, Any]] = {
    "mean that is no number": {"mean": float("nan")},
    "mean beyond the range": {"mean": -1.5},
    "infinite": {"largest_variance": float("inf")},
    "negative": {"std": -0.1},
    "whole number": {"std": 0},
    "text": {"std": "0.5"},
    "beyond the range together": {"mean": -0.9, "std": 0.9, "largest_variance": 60.0},
    "less than the constant image has": {"mean": -0.5, "largest_variance": 15.9},
    "more than all directions have": {"largest_variance": 65.0},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_impossible_statistics_are_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    index = dataclasses.replace(
        write_set(str(tmp_path)), statistics=PixelStatistics(mean=-0.5, std=0.5, largest_variance=20.0)
    )
    _altered(index)
    assert open_index(str(tmp_path)).statistics == index.statistics
    _altered(index, **DAMAGED[case])
    with pytest.raises(UserError, match=r"index\.parquet: got damaged statistics of the pixels, expected") as caught:
        open_index(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda statistics: statistics.update(mean=-0.4999),
        lambda statistics: statistics.update(sha256="0" * 64),
        lambda statistics: statistics.pop("sha256"),
        lambda statistics: statistics.pop("std"),
        lambda statistics: statistics.update(more=1.0),
    ],
)
def test_statistics_that_do_not_have_their_checksum_are_refused(change: Any, tmp_path: Path) -> None:
    index = write_set(str(tmp_path))
    _altered(dataclasses.replace(index, statistics=PixelStatistics(mean=-0.5, std=0.5, largest_variance=20.0)))
    rewritten(tmp_path / "index.parquet", lambda metadata, columns: change(metadata["statistics"]))
    with pytest.raises(UserError, match="damaged statistics of the pixels"):
        open_index(str(tmp_path))
    rewritten(tmp_path / "index.parquet", lambda metadata, columns: metadata.update(statistics=[1.0]))
    with pytest.raises(UserError, match="damaged statistics of the pixels"):
        open_index(str(tmp_path))


# From here on: what datasets_prep makes of them.


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(7):
        data = encoded(photo(number, 20, 24), "PNG")
        (source / f"{number}.png").write_bytes(data[:-300] if number == 3 else data)
    return source


class Killed(BaseException):
    """Ends a preparation on the spot."""


def preparing(photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> ShardIndex:
    words = ("--source", photos, "--out", out, "--resolution", 16, "--shard-size", 2)
    assert prepare("folder", monkeypatch, *words) == 0
    return open_index(str(out))


def test_preparation_measures_what_it_stores(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = preparing(photos, tmp_path / "out", monkeypatch)
    mean, std, *moments = by_numpy(read_images(index, 99).numpy())
    assert index.num_samples == 6 and index.statistics is not None
    got = (index.statistics.mean, index.statistics.std, index.statistics.largest_variance)
    assert got == pytest.approx((mean, std, max(moments)), rel=1e-12)
    assert f"pixels of mean {mean:.3f} and standard deviation {std:.3f} in [-1, 1]" in capsys.readouterr().err


def test_a_killed_preparation_goes_on_to_the_same_statistics(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = preparing(photos, tmp_path / "whole", monkeypatch)
    make, out = _build._make_shard, tmp_path / "killed"

    def until_the_third(task: Any) -> Any:
        if task.number == 2:
            raise Killed
        return make(task)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_build, "_make_shard", until_the_third)
        preparing(photos, out, monkeypatch)
    first = out / "_progress" / "00000.json"
    record = json.loads(first.read_text())
    assert (tmp_path / "whole" / "index.parquet").exists() and not (out / "index.parquet").exists()
    # Records that are damaged are told, and those of an earlier version, which has no sums, are made up for.
    for sums in (
        record["sums"] | {"pixels": 1},
        record["sums"] | {"images": 3},
        record["sums"] | {"blocks": "AAAA"},
        7,
    ):
        first.write_text(json.dumps(record | {"sums": sums}))
        with pytest.raises(UserError, match=r"00000\.json: got something else"):
            preparing(photos, out, monkeypatch)
    first.write_text(json.dumps({name: value for name, value in record.items() if name != "sums"}))
    found = preparing(photos, out, monkeypatch)
    assert found.statistics == whole.statistics is not None
    assert (out / "index.parquet").read_bytes() == (tmp_path / "whole" / "index.parquet").read_bytes()


def test_a_finished_output_of_an_earlier_version_is_measured_when_it_is_asked_for_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    whole = preparing(photos, out, monkeypatch)
    data = (out / "index.parquet").read_bytes()
    write_index(dataclasses.replace(whole, statistics=None))
    bare = (out / "index.parquet").read_bytes()
    assert bare != data
    with monkeypatch.context() as patch:
        refuse = UserError("folder", got="no right", expected="the right to write", remedy="ask for it")
        patch.setattr(Folder, "write", lambda self, name, data: (_ for _ in ()).throw(refuse))
        preparing(photos, out, monkeypatch)
    assert "could not be added to its index (folder: got no right" in capsys.readouterr().err
    assert (out / "index.parquet").read_bytes() == bare
    preparing(photos, out, monkeypatch)
    assert (
        "nothing to do" in (shown := capsys.readouterr().err) and "Its index has statistics of the pixels now" in shown
    )
    assert (out / "index.parquet").read_bytes() == data
    preparing(photos, out, monkeypatch)
    assert "statistics" not in capsys.readouterr().err
