"""A model does what the jobs do, bit for bit, and refuses what it cannot use in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor

import drl_dist
from drl_dist.build import build_ladder, build_levels
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_unit_range
from drl_dist.config.tree import Experiment, ModelConfig
from drl_dist.diffusion.ladder import draw_pairs
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.edit.driver import inpaint_run, interpolate_run
from drl_dist.jobs.edit.options import InpaintOptions, InterpolateOptions
from drl_dist.jobs.sample.task import SampleRequest, SampleTasks
from drl_dist.library.engine import averaged_network
from drl_dist.library.stored import load_model
from drl_dist.training.state import TrainState
from tests.data.sets import pixels_of, write_set


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:  # pyright: ignore[reportUnusedFunction]
    # The number that the jobs below have.
    torch.set_num_threads(1)


def first_images() -> Tensor:
    return torch.from_numpy(np.stack([pixels_of(number) for number in range(3)]))


@pytest.mark.parametrize(
    ("argument", "option"), [({}, {}), ({"num_chain_steps": 1}, {"num_chain_steps": 1})], ids=["own", "override"]
)
def test_images_are_those_of_the_sampling_job(
    model: drl_dist.Model, checkpoint: Path, tmp_path: Path, argument: dict[str, int], option: dict[str, int]
) -> None:
    stored = load_model(str(checkpoint), None)
    request = SampleRequest(
        preset="tiny",
        ema_sha256=stored.ema_sha256,
        config_sha256=stored.config_sha256,
        num_images=7,
        seed=5,
        noise_scale=stored.experiment.mcmc.sampling_noise_scale,
        shard_size=8,
        batch_size=4,
        device="cpu",
        threads=1,
        **option,  # pyright: ignore[reportArgumentType]
    )
    *_, record = SampleTasks(stored.experiment, stored.ema, request, str(tmp_path)).make(0)
    shard = webdataset.WebDataset([str(tmp_path / record.row.name)], shardshuffle=False).decode("pil")  # pyright: ignore
    made = np.stack([np.asarray(entry["png"].convert("L")) for entry in shard])
    images = model.sample(7, seed=5, batch_size=4, **argument)
    assert images.dtype == torch.uint8 and images.shape == (7, 1, 8, 8) and images.device.type == "cpu"
    np.testing.assert_array_equal(images[:, 0].numpy(), made)
    assert not torch.equal(images, model.sample(7, seed=6, batch_size=4, **argument))


def test_more_chain_steps_make_other_images(model: drl_dist.Model) -> None:
    assert not torch.equal(model.sample(2), model.sample(2, num_chain_steps=3))
    assert model.experiment.mcmc.sampling_chain_steps is None


def test_a_row_is_that_of_the_interpolation_job(model: drl_dist.Model, checkpoint: Path, tmp_path: Path) -> None:
    interpolate_run(InterpolateOptions(model=str(checkpoint), out=str(tmp_path / "out"), seed=5, pairs=1, columns=4))
    row = model.interpolate(0, 1, 4, seed=5)
    for column, image in enumerate(row):
        made = np.asarray(Image.open(tmp_path / f"out/images/00000-{column:03d}.png"))
        np.testing.assert_array_equal(image[0].numpy(), made)
    ends = model.sample(4, seed=5)
    assert torch.equal(row[[0, -1]], ends[:2]) and not torch.equal(row[1], row[2])
    assert torch.equal(model.interpolate(3, 1, 4, seed=5)[[0, -1]], ends[[3, 1]])


def test_filled_in_images_are_those_of_the_inpainting_job(
    model: drl_dist.Model, checkpoint: Path, tmp_path: Path
) -> None:
    write_set(str(tmp_path / "data"), (3,))
    options: dict[str, Any] = {
        "model": str(checkpoint),
        "data": str(tmp_path / "data"),
        "num_images": 3,
        "num_completions": 1,
        "seed": 5,
    }
    inpaint_run(InpaintOptions(out=str(tmp_path / "half"), mask="left-half", num_rounds=2, **options))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = True
    filled = model.inpaint(first_images(), mask, seed=5, num_rounds=2)
    inpaint_run(InpaintOptions(out=str(tmp_path / "clean"), task="denoise", noise_std=60, degraded=True, **options))
    clean = model.denoise(first_images(), 60, seed=5)
    for number in range(3):
        for folder, images in (("half", filled), ("clean", clean)):
            made = np.asarray(Image.open(tmp_path / folder / f"images/{number:05d}-result-000.png"))
            np.testing.assert_array_equal(images[number, 0].numpy(), made)
    assert torch.equal(filled[..., 4:], first_images()[..., 4:])
    # A mask of its own for each image, and floating-point pixels.
    masks = torch.stack([mask, ~mask, mask])
    each = model.inpaint(first_images().float() / 255, masks, seed=5, num_rounds=2)
    assert torch.equal(each[0], filled[0]) and torch.equal(each[1, ..., :4], first_images()[1, ..., :4])


@pytest.mark.parametrize("level", [0, 4])
def test_log_densities_are_those_of_the_network(model: drl_dist.Model, level: int) -> None:
    experiment, ids = model.experiment, torch.arange(3)
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    t = torch.full_like(ids, level)
    pairs = draw_pairs(PhiloxNoise(5), ids, to_unit_range(first_images()), t, ladder, levels.transition_scale)
    with torch.no_grad():
        expected = model.network(pairs.y_pos, t).double() * levels.energy_scale[level]
    with pytest.warns(UserWarning, match="too sharp to be densities"):
        found = model.log_density(first_images(), level=level, seed=5, batch_size=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert found.dtype == torch.float64


def test_a_state_of_training_is_a_model(model: drl_dist.Model) -> None:
    state = TrainState.create(model.experiment)
    state.ema.shadow = model.weights
    state.step = 7
    early = drl_dist.Model.of_state(model.experiment, state)
    assert early.step == 7 and torch.equal(early.sample(2), model.sample(2))


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_weights_may_be_tensors_or_arrays_that_cannot_be_written_to(model: drl_dist.Model) -> None:
    arrays = {name: value.numpy() for name, value in model.weights.items()}
    for array in arrays.values():
        array.flags.writeable = False
    one, other = (averaged_network(model.experiment, ema, model.device) for ema in (model.weights, arrays))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_moving_it_changes_nothing(model: drl_dist.Model) -> None:
    expected = model.sample(2)
    assert model.to("cpu") is model and torch.equal(model.sample(2), expected)


BAD: list[tuple[Callable[[drl_dist.Model], object], str]] = [
    (lambda model: model.sample(0), "argument num_images: got 0, expected at least 1"),
    (lambda model: model.sample(1, seed=-1), "argument seed: got -1"),
    (lambda model: model.sample(1, batch_size=0), "argument batch_size: got 0"),
    (lambda model: model.sample(1, num_chain_steps=0), "mcmc.sampling_chain_steps: got 0"),
    (lambda model: model.interpolate(1, 1, 3), r"first and second: got \(1, 1\)"),
    (lambda model: model.interpolate(-1, 1, 3), "first and second: got -1, expected two"),
    (lambda model: model.interpolate(0, 1, 1), "num_images: got 1, expected at least 2"),
    (lambda model: model.to("cuda:99"), "device: got cuda:99 "),
    (lambda model: model.to("gpu"), "device: got gpu "),
    (lambda model: model.log_density(first_images(), level=6), "argument level: got 6, expected 0 to 5"),
    (lambda model: model.log_density([1, 2]), "images: got list"),  # pyright: ignore[reportArgumentType]
    (lambda model: model.log_density(first_images().long()), "got pixels of torch.int64"),
    (lambda model: model.log_density(first_images().float()), "floating-point pixels from 0 to 255"),
    (lambda model: model.log_density(torch.full((1, 8, 8), torch.nan)), "floating-point pixels from nan"),
    (lambda model: model.log_density(torch.zeros(0, 1, 8, 8)), r"got shape \(0, 1, 8, 8\)"),
    (lambda model: model.log_density(np.zeros((2, 8, 8, 3), "uint8")), "with channels last.*transpose"),
    (lambda model: model.log_density(np.array(["a"])), "got an array of <U1"),
    (lambda model: model.log_density(torch.zeros(2, 3, 8, 8)), r"got images of shape \(3, 8, 8\)"),
    (lambda model: model.inpaint(first_images(), torch.ones(8, 8, dtype=torch.bool)), "hides all pixels"),
    (lambda model: model.inpaint(first_images(), torch.zeros(8, 8)), "mask: got torch.float32 of shape"),
    (
        lambda model: model.inpaint(first_images(), np.zeros((4, 8, 8), bool)),
        r"mask: got torch.bool of shape \(4, 8, 8",
    ),
    (lambda model: model.inpaint(first_images(), np.eye(8, dtype=bool), num_rounds=0), "num_rounds: got 0"),
    (lambda model: model.denoise(first_images(), 0), "argument noise_std: got 0, expected more than"),
    (lambda model: model.denoise(torch.full((1, 8, 8), torch.inf), 60), "pixels that are not finite"),
]


NO_NUMBERS = ("4", 2.0, None, [1], True, torch.tensor([1, 2]), b"4")
MASK = np.eye(8, dtype=bool)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_whole_number_is_refused_as_all_else(model: drl_dist.Model, value: Any) -> None:
    uses: dict[str, Callable[[], object]] = {
        "num_images": lambda: model.sample(value),
        "seed": lambda: model.sample(1, seed=value),
        "num_chain_steps": lambda: model.sample(1, num_chain_steps=value),
        "batch_size": lambda: model.sample(1, batch_size=value),
        "first and second": lambda: model.interpolate(0, value, 3),
        "num_rounds": lambda: model.inpaint(first_images(), MASK, num_rounds=value),
        "level": lambda: model.log_density(first_images(), level=value),
    }
    if value is None:
        # The model's own.
        del uses["num_chain_steps"]
    for name, use in uses.items():
        with pytest.raises(UserError, match=rf"^argument {name}: got .*, expected a whole number, "):
            use()


def test_numbers_of_numpy_and_torch_are_numbers(model: drl_dist.Model) -> None:
    expected = model.sample(2, seed=3)
    found = model.sample(np.int64(2), seed=torch.tensor(3))  # pyright: ignore[reportArgumentType]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [None, 5, b"a", ["a"]], ids=repr)
def test_what_is_no_number_no_place_and_no_device_is_refused(model: drl_dist.Model, value: Any) -> None:
    with pytest.raises(UserError, match=r"^argument folder: got .*, expected a path"):
        model.save(value)
    with pytest.raises(UserError, match=r"^argument address: got .*, expected a folder"):
        drl_dist.load(value)
    if value != 5:
        with pytest.raises(UserError, match=r"^argument noise_std: got .*, expected a number"):
            model.denoise(first_images(), value)
    with pytest.raises(UserError, match=r"^device: got "):
        model.to([] if value is None else 10**30 if value == 5 else value)


@pytest.mark.parametrize(("use", "message"), BAD)
def test_what_it_cannot_use_is_refused(
    model: drl_dist.Model, use: Callable[[drl_dist.Model], object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        use(model)
    assert "\n" not in str(error.value)


def test_images_that_are_not_finite_are_refused() -> None:
    experiment = Experiment(
        preset="tiny", model=ModelConfig(resolution=8, channels=1, width=4, width_multipliers=(1,), num_res_blocks=1)
    )
    weights = {name: value * torch.nan for name, value in TrainState.create(experiment).ema.shadow.items()}
    with pytest.raises(UserError, match="images 0 to 1: got values that are not finite"):
        drl_dist.Model(experiment, weights, step=0).sample(2, num_chain_steps=1)
