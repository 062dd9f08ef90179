"""Scores of contact sheets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import digit_features
from benchmarks.digit_features import digits
from benchmarks.sheets import cut, images_of, main
from datasets_prep.digits import main as prepare_digits
from drl_dist.common.errors import UserError
from drl_dist.common.images import enlargement, grid


def sheet_of(images: Tensor, path: Path, columns: int = 8) -> Path:
    """Write a sheet as training and sampling do."""
    Image.fromarray(grid(images, columns, enlarge=enlargement(images.shape[-1]))).save(path)
    return path


@pytest.mark.parametrize(("resolution", "count", "columns"), [(8, 64, 8), (8, 13, 5), (32, 12, 4), (64, 6, 4)])
def test_a_sheet_is_cut_into_the_images_that_it_was_made_of(resolution: int, count: int, columns: int) -> None:
    images = torch.randint(0, 256, (count, 1, resolution, resolution), dtype=torch.uint8)
    assert torch.equal(cut(grid(images, columns, enlarge=enlargement(resolution)), resolution, "sheet"), images)


def test_a_sheet_of_other_images_is_refused() -> None:
    sheet = grid(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), 2)
    with pytest.raises(UserError, match=r"^one\.png: got 62 x 62 pixels, expected a sheet of images of 32 pixels"):
        cut(sheet, 32, "one.png")


def test_a_sheet_of_larger_images_is_not_taken_for_one_of_enlarged_ones() -> None:
    sheet = grid(torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8), 2)
    with pytest.raises(UserError, match=r"^one\.png: got images of more pixels, expected images of 8 pixels"):
        cut(sheet, 8, "one.png")


def test_real_digits_are_recognised_and_noise_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digit_features, "_STEPS", 100)
    real = sheet_of(digits()[0][:64], tmp_path / "real.png")
    noise = sheet_of(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), tmp_path / "noise.png")
    assert main([str(real), str(noise), "--out", str(tmp_path / "out")]) == 0
    lines = [line.strip("| \n").split(" | ") for line in capsys.readouterr().out.splitlines()]
    scores = {name: [float(number) for number in numbers] for name, *numbers in lines[2:]}
    assert list(scores) == ["held-out images", str(real), str(noise)]
    (_, fid, recognised, *_), (_, fid_of_noise, of_noise, *_) = scores[str(real)], scores[str(noise)]
    assert recognised > max(0.3, 2 * of_noise)
    assert 3 * fid < fid_of_noise


def test_all_images_in_a_folder_of_shards_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digit_features, "_STEPS", 100)
    for size in (8, 16):
        arguments = ["digits", "--resolution", str(size), "--out", str(tmp_path / str(size)), "--workers", "1"]
        monkeypatch.setattr(sys, "argv", arguments)
        assert prepare_digits() == 0
    capsys.readouterr()
    torch.testing.assert_close(images_of(str(tmp_path / "8"), 8).double().mean(), digits()[0].double().mean())
    assert main([str(tmp_path / "8"), "--out", str(tmp_path / "out")]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    _, count, fid, _, smallest, largest = line.strip("| \n").split(" | ")
    assert int(count) == len(digits()[0])
    assert float(fid) < 3
    assert 0.07 < float(smallest) < 0.1 < float(largest) < 0.13
    with pytest.raises(UserError, match="got images of 16 pixels in 1 channels, expected images of 8 pixels"):
        main([str(tmp_path / "16"), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(("content", "told"), [(None, "expected a file"), (b"no image", "expected an image")])
def test_what_is_no_sheet_is_told(content: bytes | None, told: str, tmp_path: Path) -> None:
    place = tmp_path / "sheet.png"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(UserError, match=told):
        main([str(place), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
