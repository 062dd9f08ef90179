"""Contact sheets with captions: their size, and that the images on them can be read again."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.sheets import images_of
from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH, Panel
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.common.output.sheet import images_in, sheet_of
from drl_dist.jobs.train.pictures import training_sheet
from tests.helpers.steps import tiny


def _images(count: int, channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    # Also quite white ones, which look like empty places.
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    images[0] = 255
    return images


@pytest.mark.parametrize(("channels", "size", "count"), [(1, 8, 30), (3, 32, 7), (3, 128, 1), (1, 3, 2)])
def test_images_are_read_as_they_were(channels: int, size: int, count: int) -> None:
    generated, real = _images(count, channels, size), _images(count + 3, channels, size)
    panels = [Panel(title="generated", images=generated), Panel(title="real", images=real, columns=5)]
    with Image.open(io.BytesIO(sheet_of(panels, "models:/a@latest, step 3, seed 0"))) as picture:
        found = images_in(picture)
        assert picture.width >= MIN_WIDTH
        assert picture.info["Description"] == "models:/a@latest, step 3, seed 0"
        pixels = np.asarray(picture)
    assert found is not None and list(found) == ["generated", "real"]
    assert torch.equal(found["generated"], generated) and torch.equal(found["real"], real)
    # Its own paper, with a caption on it.
    assert (pixels[:4] == 255).all() and pixels[16:36].min() < 64


def test_a_long_caption_is_wrapped() -> None:
    panel = Panel(title="generated", images=_images(4, 1, 8))
    sizes: list[tuple[int, int]] = []
    for caption in ("short", "word " * 100):
        with Image.open(io.BytesIO(sheet_of([panel], caption))) as picture:
            sizes.append(picture.size)
            found = images_in(picture)
        assert found is not None and torch.equal(found["generated"], panel.images)
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > sizes[0][1]


def test_the_benchmark_takes_the_generated_images_of_a_sheet(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    generated, real = _images(6, 1, 8), _images(6, 1, 8)
    panels = [Panel(title="generated", images=generated), Panel(title="real", images=real + 1)]
    path.write_bytes(sheet_of(panels, "caption"))
    assert torch.equal(images_of(str(path), 8), generated)
    with pytest.raises(UserError, match=r"got images of shape \(1, 8, 8\), expected \(1, 16, 16\)"):
        images_of(str(path), 16)


def test_another_picture_is_none_of_ours() -> None:
    assert images_in(Image.new("RGB", (900, 10))) is None


def test_images_are_enlarged_by_whole_pixels_to_fill_the_width() -> None:
    # 6 columns of 8 pixels: 16 times, where 15 times would leave the page narrower than 800 pixels.
    panel = Panel(title="samples", images=_images(12, 1, 8), columns=6)
    with Image.open(io.BytesIO(sheet_of([panel], "caption"))) as picture:
        assert picture.size == (16 + 6 * (8 * 16 + 2) + 2 + 16, 16 + 22 + 8 + 22 + 2 * (8 * 16 + 2) + 2 + 16)
        tile = np.asarray(picture)[70 : 70 + 128, 18 : 18 + 128, 0]
    assert np.array_equal(tile, np.repeat(np.repeat(panel.images[0, 0].numpy(), 16, 0), 16, 1))
    # Few small images do not make a huge sheet: the rest of the width is paper.
    with Image.open(io.BytesIO(sheet_of([Panel(title="one", images=_images(1, 1, 8))], "caption"))) as picture:
        assert picture.width == MIN_WIDTH and picture.height < 400


def test_a_long_title_does_not_run_into_its_neighbour() -> None:
    images = _images(64, 1, 8)
    titles = ["1 step per level and what else there is", "30 steps per level and what else there is", "more"]
    panels = [Panel(title=title, images=images, columns=8) for title in titles]
    with Image.open(io.BytesIO(sheet_of(panels, "caption"))) as picture:
        pixels, found = np.asarray(picture.convert("L")), images_in(picture)
    assert found is not None and all(torch.equal(one, images) for one in found.values())
    across = 8 * (8 * 4 + 2) + 2
    # Titles are dark, and the paper between two panels stays white all the way down.
    for gap in (16 + across, 16 + 2 * across + 16):
        assert (pixels[16 + 22 :, gap : gap + 16] == 255).all()
    assert (pixels[46:90, 16 : 16 + across] < 128).any()


def test_training_says_which_run_a_picture_is_of() -> None:
    experiment = tiny(num_steps=9)
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=4))
    panel = Panel(title="samples", images=_images(4, 1, 8))
    with Image.open(io.BytesIO(training_sheet(RunConfig(experiment=experiment, run_name="a"), 3, panel))) as picture:
        assert picture.width >= MIN_WIDTH
        assert picture.info["Description"] == f"run a ({experiment.preset}), step 3 of 9, seed 4"
