"""Masks of the inpainting job: named regions, random pixels, files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from drl_dist.common.errors import UserError
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.edit.masks import hidden_pixels
from drl_dist.jobs.edit.options import SHAPES


def test_regions_are_where_they_are_called() -> None:
    row, column = np.indices((8, 8))
    wanted = {
        "left-half": column < 4,
        "right-half": column >= 4,
        "top-half": row < 4,
        "bottom-half": row >= 4,
        "centre": (abs(row - 3.5) < 2) & (abs(column - 3.5) < 2),
    }
    assert set(wanted) == set(SHAPES)
    for name, where in wanted.items():
        hidden = hidden_pixels(name, 8, PhiloxNoise(0), torch.arange(3))
        assert hidden.shape == (3, 1, 8, 8)
        for image in hidden[:, 0]:
            np.testing.assert_array_equal(image.numpy(), where, err_msg=name)


def test_random_masks_hide_their_share_and_are_keyed_by_image() -> None:
    ids = torch.arange(200)
    hidden = hidden_pixels("random-30%", 8, PhiloxNoise(1), ids)
    assert bool((hidden.flatten(1).sum(1) == round(0.3 * 64)).all())
    assert len({image.numpy().tobytes() for image in hidden}) == 200
    assert torch.equal(hidden[[7, 3]], hidden_pixels("random-30%", 8, PhiloxNoise(1), torch.tensor([7, 3])))
    # Every pixel is hidden equally often: 200 draws of 19 in 64, five standard errors.
    often = hidden.float().mean((0, 1))
    assert float((often - 19 / 64).abs().max()) < 5 * (19 / 64 * 45 / 64 / 200) ** 0.5


def png(array: NDArray[np.uint8], mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_mask_file_is_white_where_pixels_are_filled_in(tmp_path: Path, mode: str) -> None:
    where = np.random.Generator(np.random.PCG64(0)).random((8, 8)) < 0.5
    (tmp_path / "mask.png").write_bytes(png(where.astype(np.uint8) * 255, mode))
    for place in (str(tmp_path / "mask.png"), f"file://{tmp_path}/mask.png"):
        hidden = hidden_pixels(place, 8, PhiloxNoise(0), torch.arange(2))
        np.testing.assert_array_equal(hidden.numpy(), np.broadcast_to(where, (2, 1, 8, 8)))


def test_other_mask_files_are_refused(tmp_path: Path) -> None:
    checker = np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 255
    sound = png(checker, "L")
    cases = {
        "got 9x8 pixels, expected 8x8 pixels": png(np.zeros((8, 9), np.uint8), "L"),
        "got mode RGBA, expected black and white": png(checker, "RGBA"),
        "got bytes that are no picture": b"not a picture",
        r"got bytes that are no picture \(": sound[:-25],
        "got 0 of 64 pixels to fill in": png(np.zeros((8, 8), np.uint8), "L"),
        "got 64 of 64 pixels to fill in": png(np.full((8, 8), 255, np.uint8), "L"),
    }
    for message, content in cases.items():
        (tmp_path / "mask.png").write_bytes(content)
        with pytest.raises(UserError, match=f"mask .*mask.png: {message}"):
            hidden_pixels(str(tmp_path / "mask.png"), 8, PhiloxNoise(0), torch.arange(2))
