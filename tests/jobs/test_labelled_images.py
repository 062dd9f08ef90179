"""Generated and edited images with labels: each its own, whatever makes it, and told in shards and pictures."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from drl_dist.build import build_sampler
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.output.sheet import images_in
from drl_dist.jobs.edit.driver import inpaint_run, interpolate_run
from drl_dist.jobs.edit.options import InpaintOptions, InterpolateOptions
from drl_dist.jobs.sample.driver import sample_run
from drl_dist.jobs.sample.options import SampleOptions
from drl_dist.jobs.sample.output import SampleOutput
from drl_dist.jobs.sample.task import SampleTasks
from drl_dist.library.engine import frozen_engine
from drl_dist.library.model import Model
from drl_dist.sampling.composition import Concept, composed
from tests.data.sets import write_set
from tests.helpers.labelled import NAMES
from tests.helpers.sampled import facts, finished, make_model, pixels, request, stored


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("labelled") / "checkpoint", "class")


@pytest.fixture(scope="module")
def of_attributes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("attributes") / "checkpoint", "attributes")


def drawn(checkpoint: Path, ids: Tensor, terms: Mapping[int, float], guidance: float = 0.0) -> np.ndarray:
    """Images of one weighted sum of classes, drawn by hand."""
    experiment, ema = stored(checkpoint)
    engine = frozen_engine(experiment, ema, torch.device("cpu"))
    concepts = [Concept(weight, torch.eye(3)[label]) for label, weight in terms.items()]
    raw_at = composed(engine.raw_at, concepts, guidance)
    return to_uint8(build_sampler(experiment).sample(raw_at, PhiloxNoise(3), ids, (1, 8, 8)))[:, 0].numpy()


@pytest.mark.parametrize("guidance", [None, 1.5])
def test_each_image_is_drawn_with_its_label(checkpoint: Path, guidance: float | None, tmp_path: Path) -> None:
    index, grid = finished(checkpoint, tmp_path, labels="uniform", guidance=guidance)
    found = pixels(tmp_path)
    for label in range(3):
        ids = torch.arange(label, 10, 3)
        expected = drawn(checkpoint, ids, {label: 1}, guidance or 0.0)
        for place, image in enumerate(ids.tolist()):
            assert np.abs(found[image].astype(int) - expected[place].astype(int)).max() <= 1
    assert facts(tmp_path) == {image: {"label": image % 3} for image in range(10)}
    assert index.classes == NAMES and index.class_counts == (4, 3, 3)
    # A row of each class: three images of each, for of two there are no more.
    (shown,) = (images_in(Image.open(io.BytesIO(grid))) or {}).values()
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert np.array_equal(shown[:, 0].numpy(), np.stack([found[image] for image in order]))
    other = finished(checkpoint, tmp_path / "other", label="ant")[0]
    assert other.class_counts == (10, 0, 0)
    assert not np.array_equal(pixels(tmp_path / "other")[1], found[1])


def test_sums_and_counts(checkpoint: Path, of_attributes: Path, tmp_path: Path) -> None:
    index, _ = finished(checkpoint, tmp_path / "sum", compose="ant & 2 * bee - cow")
    found, expected = pixels(tmp_path / "sum"), drawn(checkpoint, torch.arange(10), {0: 1, 1: 2, 2: -1})
    assert all(np.abs(found[image].astype(int) - expected[image].astype(int)).max() <= 1 for image in range(10))
    assert index.classes == () and set(facts(tmp_path / "sum").values()) == {None}
    index, _ = finished(checkpoint, tmp_path / "counts", label="cow:7,ant:3")
    assert index.class_counts == (3, 0, 7)
    assert [one["label"] for _, one in sorted(facts(tmp_path / "counts").items())] == [2] * 7 + [0] * 3
    index, _ = finished(of_attributes, tmp_path / "attributes", label="ant & not bee, cow")
    assert index.attributes == NAMES and index.attribute_counts == (5, 0, 5) and index.classes == ()
    assert facts(tmp_path / "attributes")[0] == {"attributes": [1, -1, 0]}


def test_another_label_is_another_request(checkpoint: Path, tmp_path: Path) -> None:
    finished(checkpoint, tmp_path, labels="uniform", guidance=1.0)
    experiment, _ = stored(checkpoint)
    for asked in ({"labels": "uniform"}, {"labels": "uniform", "guidance": 2.0}, {"label": "ant"}, {}):
        with pytest.raises(UserError, match="other images"):
            SampleOutput(str(tmp_path), experiment, request(**asked)).is_complete()
    # Requests without labels stay what they were.
    assert not {"label", "labels", "compose", "guidance", "label_data"} & request().to_record().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "horse"}, "--label: got horse, expected one of the model's 3 names: ant, bee, cow"),
        ({"label": "ant:3"}, "--num-images: got 64, expected 3"),
        ({"labels": "data"}, "--labels: got data, without data that say how frequent"),
        ({"compose": "ant &"}, "--compose: got 'ant &', expected names"),
        ({"guidance": 2.0}, "--guidance: got 0 of --label, --labels and --compose"),
    ],
)
def test_what_cannot_be_asked_writes_nothing(
    checkpoint: Path, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        sample_run(SampleOptions(model=str(checkpoint), out=str(out), **options))
    if "num-images" not in message and "labels" not in options:
        with pytest.raises(UserError, match=message):
            interpolate_run(InterpolateOptions(model=str(checkpoint), out=str(out), **options))
    assert not out.exists()


def test_numbers_of_labels_are_those_of_what_is_edited(checkpoint: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    write_set(str(data))
    with pytest.raises(UserError, match="--pairs: got 2, expected 4, the numbers of --label together; give --pairs 4"):
        interpolate_run(InterpolateOptions(model=str(checkpoint), out=str(out), pairs=2, label="ant:3,bee:1"))
    given = InpaintOptions(model=str(checkpoint), out=str(out), data=str(data), mask="left-half", num_images=2)
    with pytest.raises(UserError, match="--num-images: got 2, expected 1, the numbers of --label together"):
        inpaint_run(dataclasses.replace(given, label="ant:1"))
    assert not out.exists()
    options = InterpolateOptions(model=str(checkpoint), out=str(out), pairs=2, columns=2, label="bee:1,ant:1")
    assert interpolate_run(options) == 0


def test_guidance_is_named_where_images_are_not_finite(checkpoint: Path, tmp_path: Path) -> None:
    experiment, ema = stored(checkpoint)
    broken = {name: np.full_like(value, np.nan) for name, value in ema.items()}
    for asked, remedy in (({"label": "ant"}, "; sample an"), ({"label": "ant", "guidance": 2.0}, "; lower --guidance")):
        with pytest.raises(UserError, match=f"expected finite pixels{remedy}"):
            list(SampleTasks(experiment, broken, request(**asked), str(tmp_path)).make(0))


def test_edited_images_have_labels(checkpoint: Path, tmp_path: Path) -> None:
    def read(name: str) -> list[np.ndarray]:
        return [np.asarray(Image.open(path)) for path in sorted((tmp_path / name / "images").glob("*.png"))]

    for name, label in (("plain", None), ("ants", "ant"), ("turns", "ant,bee")):
        options = InterpolateOptions(model=str(checkpoint), out=str(tmp_path / name), pairs=2, columns=3, label=label)
        assert interpolate_run(dataclasses.replace(options, seed=3)) == 0
    ants, turns = read("ants"), read("turns")
    ends = drawn(checkpoint, torch.tensor([0, 1]), {0: 1})
    assert np.abs(ants[0].astype(int) - ends[0].astype(int)).max() <= 1
    assert np.abs(ants[2].astype(int) - ends[1].astype(int)).max() <= 1
    # The first row is of ants in both, the second of bees.
    assert all(np.array_equal(ants[place], turns[place]) for place in range(3))
    assert not any(np.array_equal(ants[place], turns[place]) for place in range(3, 6))
    assert not np.array_equal(read("plain")[0], ants[0])

    write_set(str(tmp_path / "data"))
    for name, label in (("hidden", None), ("as-bee", "bee")):
        assert (
            inpaint_run(
                InpaintOptions(
                    model=str(checkpoint),
                    out=str(tmp_path / name),
                    data=str(tmp_path / "data"),
                    mask="left-half",
                    num_images=2,
                    num_completions=1,
                    num_rounds=1,
                    label=label,
                )
            )
            == 0
        )
    # Given, original and result of an image.
    assert np.array_equal(read("hidden")[0], read("as-bee")[0])
    assert not np.array_equal(read("hidden")[2], read("as-bee")[2])


def test_the_library_draws_what_the_job_does(checkpoint: Path, tmp_path: Path) -> None:
    experiment, ema = stored(checkpoint)
    model = Model(experiment, ema, step=3)
    finished(checkpoint, tmp_path, labels="uniform", guidance=1.0)
    found = pixels(tmp_path)
    images = model.sample(10, labels="uniform", guidance=1.0, seed=3)
    assert max(np.abs(found[image].astype(int) - images[image, 0].numpy().astype(int)).max() for image in found) <= 1
    assert torch.equal(model.sample(4, labels=["ant", "bee"]), model.sample(4, labels="ant,bee"))
    assert torch.equal(model.sample(2, labels=["ant"]), model.sample(2, compose="ant"))
    row = model.interpolate(0, 1, 3, labels=["bee"])
    assert torch.equal(row[0], model.sample(1, labels=["bee"])[0])
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4:] = True
    completed = model.inpaint(images, mask, labels="uniform", num_rounds=1)
    assert torch.equal(completed[:, :, :4], images[:, :, :4])
    assert not torch.equal(completed, model.inpaint(images, mask, num_rounds=1))
    with pytest.raises(UserError, match="--label: got dog, expected one of the model's 3 names"):
        model.sample(1, labels=["dog"])
