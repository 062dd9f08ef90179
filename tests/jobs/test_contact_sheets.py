"""Contact sheets with captions: their size, and that the images on them can be read again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.sheets import images_of
from drl_dist.common.errors import UserError
from drl_dist.jobs.common.output.sheet import MIN_WIDTH, Panel, images_in, sheet_of


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
