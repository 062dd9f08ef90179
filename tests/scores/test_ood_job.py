"""The out-of-distribution job: AUROC, histogram and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drl_dist.checkpoints.files import CheckpointState, write_checkpoint
from drl_dist.data.index import open_index
from drl_dist.errors import UserError
from drl_dist.evaluation.ood import auroc, log_densities
from drl_dist.noise import PhiloxNoise
from drl_dist.scores.images import image_batches
from drl_dist.scores.ood import histogram_png, ood_run
from drl_dist.scores.options import OodOptions, check_ood
from drl_dist.training.state import TrainState
from tests.data.sets import write_set
from tests.method.test_step import tiny, waken
from tests.support import ROOT, subprocess_environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and two sets of images, the second of even grey."""
    folder = tmp_path_factory.mktemp("ood")
    state = TrainState.create(tiny())
    waken(state)
    write_checkpoint(
        folder / "checkpoint",
        state.tensors(),
        CheckpointState(step=7, images_seen=84, next_position=84, seed=0, data_fingerprint="0" * 64, world_size=1),
        tiny(),
    )
    write_set(str(folder / "data"))
    write_set(str(folder / "other"), (20, 11))
    return folder


def options(folder: Path, **changed: object) -> OodOptions:
    fields: dict[str, object] = {
        "model": str(folder / "checkpoint"),
        "data": str(folder / "data"),
        "other": str(folder / "other"),
        "out": str(folder / "out"),
        "seed": 5,
        "batch_size": 8,
    }
    return OodOptions(**fields | changed)  # pyright: ignore[reportArgumentType]


def test_the_door_compares_and_draws(folder: Path) -> None:
    given = options(folder)
    arguments = [
        f"--{name.replace('_', '-')}={value}" for name, value in vars(given).items() if value not in (None, False)
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "ood.py"), *arguments],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "log-densities of other images: 31/31 images" in done.stderr
    state = TrainState.create(tiny())
    waken(state)
    network, noise = state.ema_network(), PhiloxNoise(5)

    def densities(name: str) -> torch.Tensor:
        (images,) = image_batches(open_index(str(folder / name)), 31, 31)
        return log_densities(network, tiny(), noise, images, torch.arange(31))

    inside, outside = densities("data"), densities("other")
    report = json.loads((folder / "out" / "ood.json").read_text())
    assert (report["num_images"], report["step"], report["model"]) == (31, 7, given.model)
    # Other batches round differently, which may swap near values.
    assert report["auroc"] == pytest.approx(auroc(inside, outside), abs=0.01)
    assert report["data"]["mean"] == pytest.approx(float(inside.mean()), rel=1e-4)
    assert report["other"]["std"] == pytest.approx(float(outside.std(correction=0)), rel=1e-3)
    assert f"AUROC {report['auroc']:.4f}" in done.stdout
    with Image.open(folder / "out" / "histogram.png") as image:
        assert image.size == (840, 480)


def test_the_histogram_shows_both_sets() -> None:
    def colours(inside: torch.Tensor, outside: torch.Tensor) -> tuple[int, int]:
        """Pixels that are rather blue, and rather orange, in the lower left half of the picture."""
        with Image.open(io.BytesIO(histogram_png(inside, outside, 0.9, ("a", "b")))) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)[100:400, 100:420]
        return int((pixels[..., 2] - pixels[..., 0] > 40).sum()), int((pixels[..., 0] - pixels[..., 2] > 40).sum())

    generator = torch.Generator().manual_seed(0)
    low, high = (torch.randn(500, generator=generator) + shift for shift in (0.0, 20.0))
    blue, orange = colours(low, high)
    assert blue > 1000 and blue > 20 * orange, "the first set is blue, and is left of the other"
    blue, orange = colours(high, low)
    assert orange > 1000 and orange > 20 * blue


def test_sets_that_cannot_be_compared_are_refused(folder: Path, tmp_path: Path) -> None:
    state = TrainState.create(tiny())
    ema = {name: value.numpy() for name, value in state.ema.shadow.items()}
    with pytest.raises(UserError, match=r"other images .*: got 31 images, expected at least 40"):
        ood_run(options(folder, num_images=40), tiny(), ema, 7)
    write_set(str(tmp_path), channels=3)
    with pytest.raises(UserError, match="got 8x8 pixels with 3 channels, expected 8x8 pixels with 1 channel"):
        ood_run(options(folder, other=str(tmp_path)), tiny(), ema, 7)
    broken = {name: np.full_like(value, np.nan) for name, value in ema.items()}
    with pytest.raises(UserError, match=r"log-densities of .*: got values that are not finite"):
        ood_run(options(folder, out=str(tmp_path / "out")), tiny(), broken, 7)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"other": "", "out": ""}, "got no --other, --out"),
        (
            {"model": "digits"},
            "--model: got digits, expected models:/NAME@latest, models:/NAME/VERSION, a URL or an absolute path",
        ),
        ({"out": "out"}, "--out: got out"),
        ({"num_images": 0}, "--num-images: got 0"),
        ({"batch_size": 0}, "--batch-size: got 0"),
        ({"seed": -1}, "--seed: got -1"),
    ],
)
def test_impossible_options_are_refused(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    check_ood(dataclasses.replace(options(tmp_path), model="models:/digits@latest"))
    with pytest.raises(UserError, match=message):
        check_ood(options(tmp_path, **changed))
