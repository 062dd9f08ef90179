"""The editing jobs: what is observed comes out exactly, images depend on themselves alone, mistakes write nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from drl_dist.build import build_sampler
from drl_dist.checkpoints.format import CheckpointState, read_checkpoint, write_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8
from drl_dist.config.tree import EngineConfig, Experiment, McmcConfig, ModelConfig
from drl_dist.data.subset import representative
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.output.sheet import images_in
from drl_dist.jobs.edit.driver import inpaint_run, interpolate_run
from drl_dist.jobs.edit.masks import hidden_pixels
from drl_dist.jobs.edit.options import (
    InpaintOptions,
    InterpolateOptions,
    check_inpaint,
    check_interpolate,
)
from drl_dist.jobs.edit.pixels import block_means, with_block_means
from drl_dist.library.engine import averaged_network
from drl_dist.library.stored import load_model
from drl_dist.training.chain import GradientEngine
from drl_dist.training.state import TrainState
from tests.data.sets import pixels_of, write_set
from tests.support import ROOT, subprocess_environment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny untrained network."""
    experiment = Experiment(
        preset="tiny",
        model=ModelConfig(
            resolution=8, channels=1, width=4, width_multipliers=(1, 2), num_res_blocks=1, time_hidden_dim=8
        ),
        mcmc=McmcConfig(num_chain_steps=3),
    )
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    state = CheckpointState(step=3, images_seen=12, next_position=12, seed=0, data_fingerprint="0" * 64, world_size=1)
    write_checkpoint(folder, TrainState.create(experiment).tensors(), state, experiment)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images `pixels_of(0)`, `pixels_of(1)`, ..."""
    folder = tmp_path_factory.mktemp("data")
    write_set(str(folder), (3, 3))
    return folder


@pytest.fixture
def without_ray(tmp_path: Path) -> dict[str, str]:
    """An environment in which neither Ray nor MLflow can be imported."""
    folder = tmp_path / "path"
    folder.mkdir()
    for module in ("ray", "mlflow"):
        (folder / f"{module}.py").write_text(f"raise ImportError('{module} is not needed')")
    environment = subprocess_environment()
    return environment | {"PYTHONPATH": f"{folder}:{environment['PYTHONPATH']}"}


def run_job(name: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "jobs" / name, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def shown_in(path: Path) -> NDArray[np.uint8]:
    """The images of a sheet, uint8 (N, 8, 8), which is wide enough to be looked at."""
    with Image.open(path) as picture:
        found = images_in(picture)
        assert picture.width >= 800 and found is not None
    (images,) = found.values()
    return images[:, 0].numpy()


def options(model: Path, images: Path, folder: Path, /, **more: object) -> InpaintOptions:
    """Checked options of the inpainting job, which fills in the left half unless told otherwise."""
    given: dict[str, object] = {
        "model": str(model),
        "data": str(images),
        "out": str(folder),
        "num_images": 2,
        "num_completions": 2,
        "num_rounds": 2,
        "batch_size": 1,
    }
    mask = {} if "task" in more else {"mask": "left-half"}
    wanted = InpaintOptions(**given | mask | more)  # pyright: ignore[reportArgumentType]
    check_inpaint(wanted)
    return wanted


@pytest.mark.slow
def test_the_interpolation_job(checkpoint: Path, without_ray: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--model", str(checkpoint), "--pairs", "2", "--columns", "3", "--seed", "4", "--out", str(out)]
    done = run_job("interpolate.py", without_ray, *arguments)
    assert done.returncode == 0, done.stderr
    assert "interpolating: 108/108 chain steps" in done.stderr and "chain steps/s" in done.stderr
    assert f"6 images in {out}/images, shown in {out}/interpolation.png" in done.stdout
    images = {path.stem: pixels(path) for path in sorted((out / "images").iterdir())}
    assert list(images) == [f"{pair:05d}-{column:03d}" for pair in (0, 1) for column in (0, 1, 2)]

    # The ends are the images that the sampling job would make.
    model = load_model(str(checkpoint), None)
    engine = GradientEngine(averaged_network(model.experiment, model.ema, torch.device("cpu")), EngineConfig())
    same_shape = torch.tensor([0, 1, 2, 3, 0, 0])
    samples = to_uint8(build_sampler(model.experiment).sample(engine.raw_at, PhiloxNoise(4), same_shape, (1, 8, 8)))
    for image, name in enumerate(["00000-000", "00000-002", "00001-000", "00001-002"]):
        np.testing.assert_array_equal(images[name], samples[image, 0].numpy())
    assert len({image.tobytes() for image in images.values()}) == 6

    shown = shown_in(out / "interpolation.png")
    assert len(shown) == 6
    np.testing.assert_array_equal(shown[5], images["00001-002"])

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = InterpolateOptions(model=str(checkpoint), pairs=2, columns=3, seed=4, out=str(out))
    assert interpolate_run(again) == 0
    with pytest.raises(UserError, match=r"got other images \(seed: 4 -> 5\)"):
        interpolate_run(replace(again, seed=5))
    with pytest.raises(UserError, match=r"got other images \(num_chain_steps: absent -> 5\)"):
        interpolate_run(replace(again, num_chain_steps=5))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.slow
def test_the_inpainting_job(checkpoint: Path, data: Path, without_ray: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--model", str(checkpoint), "--data", str(data), "--mask", "random-25%", "--out", str(out)]
    done = run_job("inpaint.py", without_ray, *arguments, "--num-images", "3", "--num-completions", "2")
    assert done.returncode == 0, done.stderr
    # 3 steps, one level of one round and five of four, 6 results.
    assert "inpaint: 378/378 chain steps" in done.stderr
    images = {path.stem: pixels(path) for path in (out / "images").iterdir()}
    assert len(images) == 3 * 4
    hidden = hidden_pixels("random-25%", 8, PhiloxNoise(0), torch.arange(3)).numpy()[:, 0]
    for number, place in enumerate(representative(6, 3).tolist()):
        original = images[f"{number:05d}-original"]
        np.testing.assert_array_equal(original, pixels_of(place)[0])
        np.testing.assert_array_equal(images[f"{number:05d}-given"], np.where(hidden[number], np.uint8(128), original))
        results = [images[f"{number:05d}-result-{completion:03d}"] for completion in range(2)]
        for result in results:
            np.testing.assert_array_equal(result[~hidden[number]], original[~hidden[number]])
        assert (results[0] != results[1])[hidden[number]].mean() > 0.2
    shown = shown_in(out / "inpainting.png")
    assert len(shown) == 4 * 3
    for row, name in enumerate(["given", "result-000", "result-001", "original"]):
        np.testing.assert_array_equal(shown[3 * row + 1], images[f"00001-{name}"])
    request = json.loads((out / "request.json").read_text())
    assert (request["preset"], request["mask"], request["num_rounds"]) == ("tiny", "random-25%", 4)


def test_a_mistake_is_one_sentence(checkpoint: Path, data: Path, without_ray: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--model", str(checkpoint), "--data", str(data), "--mask", "left-hand", "--out", str(tmp_path / "out")]
    done = run_job("inpaint.py", without_ray, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "option --mask: got left-hand, expected left-half, right-half, top-half, bottom-half, centre, random-NN% or a "
        ".png file; correct the option.\n"
    )
    missing = run_job("interpolate.py", without_ray, "--model", "/nonesuch", "--out", str(tmp_path / "out"))
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert missing.stderr.startswith("checkpoint /nonesuch: got no complete checkpoint")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("degraded", [False, True])
def test_denoising(checkpoint: Path, data: Path, tmp_path: Path, degraded: bool) -> None:
    wanted = options(checkpoint, data, tmp_path / "out", task="denoise", noise_std=40.0, degraded=degraded)
    assert inpaint_run(wanted) == 0
    images = {path.stem: pixels(path).astype(int) for path in (tmp_path / "out" / "images").iterdir()}
    assert ("00000-original" in images) == (not degraded)
    noise = images["00000-given"] - pixels_of(int(representative(6, 2)[0]))[0]
    # Clipping takes some of the noise away.
    assert (noise == 0).all() if degraded else 20 < noise.std() < 45
    assert (images["00000-result-000"] != images["00000-result-001"]).mean() > 0.5


@pytest.mark.slow
def test_super_resolution_keeps_the_means_of_the_blocks(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    spoiled = options(checkpoint, data, tmp_path / "spoiled", task="super-resolve", factor=2)
    assert inpaint_run(spoiled) == 0
    images = {path.stem: pixels(path) for path in (tmp_path / "spoiled" / "images").iterdir()}
    small = [images[f"{number:05d}-given"][::2, ::2] for number in range(2)]
    for number, (place, shown) in enumerate(zip(representative(6, 2).tolist(), small, strict=True)):
        means = pixels_of(place)[0].reshape(4, 2, 4, 2).mean((1, 3))
        assert np.abs(means - shown).max() <= 0.5
        for completion in range(2):
            result = images[f"{number:05d}-result-{completion:03d}"].reshape(4, 2, 4, 2)
            np.testing.assert_array_equal(result.mean((1, 3)), shown)
    assert (images["00000-result-000"] != images["00000-result-001"]).mean() > 0.5

    # The same small images as data of their own give the same results.
    from drl_dist.data.filesystem import Folder
    from drl_dist.data.index import ShardIndex, write_index
    from drl_dist.data.shards import Sample, encode_png, pack_shard

    samples = [Sample(number, encode_png(np.ascontiguousarray(image[None]))) for number, image in enumerate(small)]
    shard, row = pack_shard("small-train-00000.tar", samples)
    Folder(str(tmp_path / "small")).write(row.name, shard)
    write_index(
        ShardIndex(url=str(tmp_path / "small"), name="small", split="train", resolution=4, channels=1, shards=(row,))
    )
    given = replace(spoiled, data=str(tmp_path / "small"), out=str(tmp_path / "out"), degraded=True)
    assert inpaint_run(given) == 0
    for path in (tmp_path / "out" / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "spoiled" / "images" / path.name).read_bytes()
    assert not list((tmp_path / "out" / "images").glob("*original*"))


def test_images_come_from_all_over_the_data_but_in_folders_of_earlier_versions(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    def originals(out: Path) -> list[int]:
        shown = [pixels(out / f"images/{number:05d}-original.png") for number in range(2)]
        return [next(place for place in range(6) if (pixels_of(place)[0] == one).all()) for one in shown]

    wanted = options(checkpoint, data, tmp_path / "new", num_completions=1)
    assert inpaint_run(wanted) == 0
    assert originals(tmp_path / "new") == representative(6, 2).tolist() != [0, 1]
    # As a killed start of an earlier version leaves it: the request alone.
    request = json.loads((tmp_path / "new/request.json").read_text())
    del request["images"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old/request.json").write_text(json.dumps(request))
    for _ in range(2):
        assert inpaint_run(replace(wanted, out=str(tmp_path / "old"))) == 0
        assert originals(tmp_path / "old") == [0, 1]
        assert json.loads((tmp_path / "old/request.json").read_text()) == request


@pytest.mark.slow
def test_a_result_depends_on_its_image_and_its_number_alone(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    few, many = options(checkpoint, data, tmp_path / "few"), options(checkpoint, data, tmp_path / "many")
    inpaint_run(few)
    inpaint_run(replace(many, num_completions=3, batch_size=4))
    for path in (tmp_path / "few" / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / "images" / path.name).read_bytes()
    assert len(list((tmp_path / "few" / "images").iterdir())) == 2 * 4
    inpaint_run(replace(few, out=str(tmp_path / "other"), seed=1))
    name = "images/00000-result-000.png"
    assert (tmp_path / "other" / name).read_bytes() != (tmp_path / "few" / name).read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "/nonesuch"}, "checkpoint /nonesuch: got no complete checkpoint"),
        ({"model": "models:/tiny@latest", "tracking_uri": "http://127.0.0.1:9"}, "MLflow server http:.*:9: got no"),
        ({"data": "/nonesuch"}, "data /nonesuch: got an empty or missing folder"),
        ({"num_images": 7}, "got 6 images, expected at least 7"),
        ({"mask": "/nonesuch.png"}, "mask /nonesuch.png: got no such file, expected a PNG file"),
        ({"mask": "random-0%"}, "mask random-0%: got 0 of 64 pixels to fill in"),
        ({"mask": "random-100%"}, "mask random-100%: got 64 of 64 pixels to fill in"),
        ({"task": "super-resolve", "factor": 3}, "--factor: got 3, expected a divisor of the model's resolution, 8"),
        ({"task": "super-resolve", "factor": 2, "degraded": True}, "got 8x8 pixels .* expected 4x4 pixels"),
        (
            {"task": "denoise", "noise_std": 1.0},
            "--noise-std: got 1.0, expected more than 1.28 and less than 2.007e\\+04",
        ),
        ({"use_gpu": True}, "--use-gpu: got no GPU, expected a GPU that torch can use"),
        ({"out": "ftp://host/out"}, "option --out: got ftp://host/out, expected a path"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(
    checkpoint: Path, data: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    if "use_gpu" in changed and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        inpaint_run(options(checkpoint, data, tmp_path / "out", **changed))
    assert list(tmp_path.iterdir()) == []


def test_data_of_another_size_is_told(checkpoint: Path, tmp_path: Path) -> None:
    write_set(str(tmp_path / "data"), (2,), channels=3, resolution=16)
    with pytest.raises(UserError, match="got 16x16 pixels with 3 channels, expected 8x8 pixels with 1 channel"):
        inpaint_run(options(checkpoint, tmp_path / "data", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_diverged_give_no_images(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    stored = read_checkpoint(checkpoint, ("ema",))
    bad = {"ema": {name: torch.full_like(value, float("nan")) for name, value in stored.tensors["ema"].items()}}
    write_checkpoint(tmp_path / "bad", bad, stored.state, stored.experiment)
    with pytest.raises(UserError, match="got values that are not finite"):
        inpaint_run(options(tmp_path / "bad", data, tmp_path / "out"))
    with pytest.raises(UserError, match="got values that are not finite"):
        interpolate_run(InterpolateOptions(model=str(tmp_path / "bad"), pairs=1, columns=2, out=str(tmp_path / "row")))
    assert not list(tmp_path.rglob("*.png"))


def test_block_means_become_exact_and_pixels_stay_near() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 8, 8, generator=generator)
    wanted = torch.randint(0, 256, (6, 3, 2, 2), generator=generator, dtype=torch.uint8)
    wanted[0], wanted[1] = 0, 255
    made = with_block_means(images, wanted, 4)
    assert made.dtype == torch.uint8

    def means(pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels.double(), 4)

    assert torch.equal(means(made), wanted.double())
    # What has the right means already stays as it is, and what has not is moved as little as can be: alike.
    assert torch.equal(with_block_means(made / 127.5 - 1, wanted, 4), made)
    moved = (made.double() - (images.double() + 1) * 127.5).reshape(6, 3, 2, 4, 2, 4)
    is_free = ((made > 0) & (made < 255)).reshape(6, 3, 2, 4, 2, 4)
    largest, smallest = (
        torch.where(is_free, moved, extreme).amax((3, 5))
        if extreme < 0
        else torch.where(is_free, moved, extreme).amin((3, 5))
        for extreme in (-1e9, 1e9)
    )
    assert float((largest - smallest)[is_free.any(5).any(3)].max()) < 1
    # Clipping and rounding alone, as for other tasks, would not do.
    assert not torch.equal(means(to_uint8(images)).round(), wanted.double())
    assert torch.equal(block_means(made, 4), wanted)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": None}, "got no --mask, expected --model, --data, --out, --mask; add --mask"),
        ({"data": "", "out": ""}, "got no --data, --out"),
        ({"mask": "left"}, "--mask: got left, expected left-half"),
        ({"mask": "random-1000%"}, "--mask: got random-1000%"),
        ({"factor": 2}, "--factor: got it with --task inpaint, expected --mask alone"),
        ({"task": "denoise"}, "--mask: got it with --task denoise, expected --noise-std alone"),
        ({"task": "denoise", "mask": None}, "got no --noise-std"),
        ({"task": "denoise", "mask": None, "noise_std": 0.0}, "--noise-std: got 0.0, expected a positive number"),
        ({"task": "super-resolve", "mask": None, "factor": 1}, "--factor: got 1, expected at least 2"),
        ({"degraded": True}, "--degraded: got it with --task inpaint"),
        ({"num_images": 0}, "--num-images: got 0"),
        ({"num_completions": 0}, "--num-completions: got 0"),
        ({"num_rounds": 0}, "--num-rounds: got 0"),
        ({"batch_size": 0}, "--batch-size: got 0"),
        ({"seed": 2**63}, "--seed: got"),
        ({"noise_scale": float("inf")}, "--noise-scale: got inf"),
        ({"num_chain_steps": -1}, "--num-chain-steps: got -1, expected at least 0"),
        ({"bound_fraction": 0.0}, "--bound-fraction: got 0.0, expected a number in"),
        ({"model": "digits"}, "--model: got digits, expected models:/NAME@latest"),
        ({"out": "pictures"}, "--out: got pictures, expected a URL or an absolute path"),
    ],
)
def test_impossible_options_are_refused(changed: dict[str, object], message: str) -> None:
    good = InpaintOptions(model="models:/digits@latest", data="/data", out="/pictures", mask="centre")
    check_inpaint(good)
    with pytest.raises(UserError, match=message):
        check_inpaint(replace(good, **changed))  # pyright: ignore[reportArgumentType]


def test_impossible_rows_are_refused() -> None:
    good = InterpolateOptions(model="models:/digits@latest", out="/pictures")
    check_interpolate(good)
    for changed in ({"pairs": 0}, {"columns": 1}, {"seed": -1}, {"model": ""}):
        with pytest.raises(UserError, match=f"{next(iter(changed))}"):
            check_interpolate(replace(good, **changed))
