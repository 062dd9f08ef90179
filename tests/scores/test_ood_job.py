"""The out-of-distribution job: AUROC, histogram and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drl_dist.checkpoints.format import CheckpointState, write_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import open_index
from drl_dist.data.subset import image_batches
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.output import image_job, job_records
from drl_dist.jobs.ood.driver import histogram_png, ood_run
from drl_dist.jobs.ood.options import OodOptions, check_ood
from drl_dist.library.log_density import log_densities
from drl_dist.likelihood.auroc import auroc
from drl_dist.likelihood.trust import TOO_SHARP
from drl_dist.training.state import TrainState
from tests.data.sets import write_set
from tests.helpers.steps import tiny, waken
from tests.support import ROOT, subprocess_environment


def model(folder: Path, factor: float = 1) -> Path:
    """A checkpoint whose averaged weights are multiplied by a factor."""
    state = TrainState.create(tiny())
    waken(state)
    parts = state.tensors()
    parts["ema"] = {name: value * factor for name, value in parts["ema"].items()}
    facts = CheckpointState(step=7, images_seen=84, next_position=84, seed=0, data_fingerprint="0" * 64, world_size=1)
    write_checkpoint(folder, parts, facts, tiny())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and two sets of images, the second of even grey."""
    folder = tmp_path_factory.mktemp("ood")
    model(folder / "checkpoint")
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


@pytest.mark.slow
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
        assert image.info["Description"] == f"log-densities of two sets of images: {given.model}, step 7, seed 5"


@pytest.mark.slow
def test_the_histogram_shows_both_sets() -> None:
    def colours(inside: torch.Tensor, outside: torch.Tensor) -> tuple[int, int]:
        """Pixels that are rather blue, and rather orange, in the lower left half of the picture."""
        with Image.open(io.BytesIO(histogram_png(inside, outside, 0.9, ("a", "b"), "of a, step 3"))) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)[100:400, 100:420]
        return int((pixels[..., 2] - pixels[..., 0] > 40).sum()), int((pixels[..., 0] - pixels[..., 2] > 40).sum())

    generator = torch.Generator().manual_seed(0)
    low, high = (torch.randn(500, generator=generator) + shift for shift in (0.0, 20.0))
    blue, orange = colours(low, high)
    assert blue > 1000 and blue > 20 * orange, "the first set is blue, and is left of the other"
    blue, orange = colours(high, low)
    assert orange > 1000 and orange > 20 * blue


def test_sets_that_cannot_be_compared_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other images .*: got 31 images, expected at least 40"):
        ood_run(options(folder, num_images=40, out=str(tmp_path / "out")))
    write_set(str(tmp_path), channels=3)
    with pytest.raises(UserError, match="got 8x8 pixels with 3 channels, expected 8x8 pixels with 1 channel"):
        ood_run(options(folder, other=str(tmp_path), out=str(tmp_path / "out")))
    broken = model(tmp_path / "broken", math.nan)
    with pytest.raises(UserError, match=r"log-densities of .*: got values that are not finite"):
        ood_run(options(folder, model=str(broken), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def done(folder: Path, tmp_path: Path) -> Path:
    assert ood_run(options(folder, out=str(tmp_path / "done"))) == 0
    return tmp_path / "done"


def test_energies_too_sharp_for_densities_are_warned_of(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ood_run(options(folder, out=str(tmp_path / "out"))) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")] == [
        f"warning: {TOO_SHARP}"
    ]
    assert json.loads((tmp_path / "out" / "ood.json").read_text())["warnings"] == [TOO_SHARP]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_killed_comparison_resumes_to_the_same_bytes(
    folder: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_records, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(job_records, "_COST", 0)
    given = options(folder, out=str(tmp_path / "killed"))
    write = Folder.write

    class Killed(BaseException):
        pass

    left = 0

    def cut_short(self: Folder, name: str, data: bytes) -> None:
        nonlocal left
        left -= 1
        write(self, name, data)
        if left == 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "write", cut_short)
        # The request and two records of the data; two more of them, and two of the other images.
        for left in (3, 4):  # noqa: B007 - counted down by each write
            with pytest.raises(Killed):
                ood_run(given)
            assert not (tmp_path / "killed" / "ood.json").exists()
            with pytest.raises(UserError, match=r"got another request \(seed: 5 -> 6\)"):
                ood_run(dataclasses.replace(given, seed=6))
    printed = capsys.readouterr().out
    assert "resumes at image 16 of 31 of the data" in printed
    assert ood_run(given) == 0
    assert "resumes at image 16 of 31 of the other images" in capsys.readouterr().out
    assert contents(tmp_path / "killed") == contents(done)


@pytest.mark.slow
def test_a_complete_folder_is_left_alone(folder: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    assert {path.name for path in before} == {"request.json", "ood.json", "histogram.png"}
    # The same images and weights by other names.
    assert ood_run(options(folder, out=f"file://{done}", data=f"file://{folder}/data", num_images=31)) == 0
    assert "already holds this comparison, in ood.json; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done.iterdir()} == before


@pytest.mark.slow
def test_another_request_is_refused(folder: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(done)
    with pytest.raises(UserError, match=r"got another request \(config_sha256|got another request \(ema_sha256: "):
        ood_run(options(folder, out=str(done), model=str(model(tmp_path / "other", 0.5))))
    monkeypatch.setattr(image_job, "load_model", None)
    for changed, told in (
        ({"seed": 6}, r"seed: 5 -> 6"),
        ({"num_images": 20}, r"num_images: 31 -> 20"),
        ({"other": str(folder / "data"), "num_images": 31}, r"other_fingerprint: .* -> .*"),
        ({"batch_size": 9}, r"batch_size: 8 -> 9"),
    ):
        with pytest.raises(UserError, match=rf"output .*/done: got another request \({told}\), expected"):
            ood_run(options(folder, out=str(done), **changed))
    assert contents(done) == before
    # As an earlier version left it.
    (done / "request.json").unlink()
    with pytest.raises(UserError, match=r"got histogram.png, ood.json of something else, expected an empty folder"):
        ood_run(options(folder, out=str(done)))
    assert contents(done) == {name: data for name, data in before.items() if name != "request.json"}


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
