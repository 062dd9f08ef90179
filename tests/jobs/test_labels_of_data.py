"""Images whose labels are those of random images of the data: ``--labels data`` of sampling and editing."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from drl_dist.build import build_sampler
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8
from drl_dist.data.index import open_index
from drl_dist.data.subset import representative
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.jobs.common import labels as label_options
from drl_dist.jobs.common.labels import LabelData, LabelOptions, read_label_data
from drl_dist.jobs.common.output.sheet import images_in
from drl_dist.jobs.edit.driver import inpaint_run, interpolate_run
from drl_dist.jobs.edit.options import InpaintOptions, InterpolateOptions, check_interpolate
from drl_dist.jobs.sample.driver import sample_run
from drl_dist.jobs.sample.options import SampleOptions
from drl_dist.jobs.sample.output import SampleOutput
from drl_dist.library.engine import frozen_engine
from drl_dist.sampling.composition import Concept, composed
from drl_dist.sampling.labels import LabelCounts
from tests.helpers import labelled
from tests.helpers.labelled import NAMES, attributes_of, class_of, write_images
from tests.helpers.sampled import facts, finished, make_model, pixels, request, stored


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("labelled") / "checkpoint", "class")


@pytest.fixture(scope="module")
def of_attributes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("attributes") / "checkpoint", "attributes")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with attributes, some of them unknown, and some images without a class."""
    folder = tmp_path_factory.mktemp("real") / "data"
    write_images(folder, range(26))
    return folder


def from_data(checkpoint: Path, real: Path, **asked: object) -> dict[str, object]:
    """What a request has of ``--labels data``."""
    options, (experiment, _) = LabelOptions(labels="data"), stored(checkpoint)
    label_data = read_label_data(options, experiment.condition, open_index(str(real)))
    assert label_data is not None
    return {"labels": "data", "label_data": label_data, **asked}


def labels_by_frequency(real: Path) -> list[list[int]]:
    """The attributes of all images of the data, frequent ones first."""
    known = [attributes_of(number) for number in range(26)]
    return sorted(known, key=lambda label: (-known.count(label), label))


def test_attributes_are_those_of_random_images_of_the_data(of_attributes: Path, real: Path, tmp_path: Path) -> None:
    asked = from_data(of_attributes, real)
    index, grid = finished(of_attributes, tmp_path, **asked)
    # Image i has those that its own number points at, among all images of the data.
    numbers = PhiloxNoise(3).uniform(Purpose.SAMPLE_LABEL, torch.arange(10), 0, (0,), 1)[0, :, 0]
    expected = [labels_by_frequency(real)[int(number * 26)] for number in numbers]
    assert [one["attributes"] for _, one in sorted(facts(tmp_path).items())] == expected
    assert len({tuple(label) for label in expected}) > 3 and any(0 in label for label in expected)
    assert index.attribute_counts == tuple(sum(label[place] == 1 for label in expected) for place in range(3))
    experiment, ema = stored(of_attributes)
    engine = frozen_engine(experiment, ema, torch.device("cpu"))
    concepts = [Concept(1.0, torch.tensor(expected).float())]
    raw_at, noise = composed(engine.raw_at, concepts), PhiloxNoise(3)
    by_hand = to_uint8(build_sampler(experiment).sample(raw_at, noise, torch.arange(10), (1, 8, 8)))[:, 0].numpy()
    found = pixels(tmp_path)
    assert all(np.abs(found[image].astype(int) - by_hand[image].astype(int)).max() <= 1 for image in range(10))
    # Rows of labels that several images have, or the images as they come.
    several = [label for label in dict.fromkeys(map(tuple, expected)) if expected.count(list(label)) > 1]
    (shown,) = (images_in(Image.open(io.BytesIO(grid))) or {}).values()
    assert len(several) >= 2
    assert len(shown) == len(several) * min(expected.count(list(label)) for label in several)


def test_a_request_names_the_data_and_stays_small(of_attributes: Path, real: Path, tmp_path: Path) -> None:
    asked, (experiment, _) = from_data(of_attributes, real), stored(of_attributes)
    finished(of_attributes, tmp_path / "out", **asked)
    wanted = request(**asked)
    told = wanted.to_record()["label_data"]
    assert told == {"fingerprint": open_index(str(real)).fingerprint, "images": 26}
    write_images(tmp_path / "other", range(100, 126))
    other = request(**from_data(of_attributes, tmp_path / "other"))
    with pytest.raises(UserError, match=r"other images \(label_data.fingerprint: "):
        SampleOutput(str(tmp_path / "out"), experiment, other).is_complete()
    # More images keep those that are there.
    more = dataclasses.replace(wanted, num_images=12)
    output = SampleOutput(str(tmp_path / "out"), experiment, more)
    assert not output.is_complete() and set(output.finished()) == {0, 1}


def test_classes_as_frequent_as_in_the_data_are_drawn_once(checkpoint: Path, real: Path, tmp_path: Path) -> None:
    asked = from_data(checkpoint, real)
    finished(checkpoint, tmp_path, **asked)
    counts = [sum(class_of(number) == label for number in range(26)) for label in range(3)]
    assert request(**asked).to_record()["label_data"] == {"class_counts": counts}
    numbers = PhiloxNoise(3).uniform(Purpose.SAMPLE_LABEL, torch.arange(10), 0, (0,), 1)[0, :, 0]
    images = [label for label in range(3) for _ in range(counts[label])]
    expected = [{"label": images[int(number * len(images))]} for number in numbers]
    assert [one for _, one in sorted(facts(tmp_path).items())] == expected


def test_of_many_images_some_from_all_over_the_data_are_read(
    of_attributes: Path, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_options, "MOST_IMAGES_READ", 8)
    label_data = cast(LabelData, from_data(of_attributes, real)["label_data"])
    assert label_data.record["images"] == 8 and sum(label_data.counts.images) == 8
    some = [tuple(attributes_of(number)) for number in representative(26, 8).tolist()]
    assert dict(zip(label_data.counts.labels, label_data.counts.images, strict=True)) == Counter(some)


def test_data_whose_labels_are_not_those_of_the_model_are_refused(
    of_attributes: Path, real: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "renamed", range(26), ("bee", "ant", "cow"))
    write_images(tmp_path / "nameless", range(26), made_by={})
    out = tmp_path / "out"
    common: dict[str, Any] = {"model": str(of_attributes), "out": str(out), "labels": "data"}
    for data, message in (
        ("renamed", r"data .*: got 3 names of attributes: bee, ant, cow, expected the 3 of the model"),
        ("nameless", r"data .*: got images without attributes, expected attributes with names"),
    ):
        with pytest.raises(UserError, match=message):
            sample_run(SampleOptions(**common, real=str(tmp_path / data)))
        with pytest.raises(UserError, match=message):
            interpolate_run(InterpolateOptions(**common, real=str(tmp_path / data)))
    for run in (lambda: sample_run(SampleOptions(**common)), lambda: interpolate_run(InterpolateOptions(**common))):
        with pytest.raises(UserError, match=r"--labels: got data, without data .*; add --real\."):
            run()
    with pytest.raises(UserError, match=r"--real: got .*, expected it with --labels data"):
        check_interpolate(InterpolateOptions(model="/m", out="/o", real=str(real), label="ant"))
    assert not out.exists()


def test_images_of_which_nothing_is_known_are_left_out(
    of_attributes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled, "attributes_of", lambda number: [0, 0, 0] if number % 2 else [1, 0, -1])
    write_images(tmp_path / "some", range(26))
    label_data = cast(LabelData, from_data(of_attributes, tmp_path / "some")["label_data"])
    assert label_data.counts == LabelCounts((13,), ((1, 0, -1),))
    monkeypatch.setattr(labelled, "attributes_of", lambda _: [0, 0, 0])
    write_images(tmp_path / "none", range(26))
    with pytest.raises(UserError, match=r"data .*: got images without labels, expected labels"):
        from_data(of_attributes, tmp_path / "none")


def test_edited_images_have_attributes_of_the_data(of_attributes: Path, real: Path, tmp_path: Path) -> None:
    numbers = PhiloxNoise(3).uniform(Purpose.SAMPLE_LABEL, torch.arange(2), 0, (0,), 1)[0, :, 0]
    labels = [labels_by_frequency(real)[int(number * 26)] for number in numbers]
    named = [
        " & ".join(("" if value > 0 else "not ") + name for name, value in zip(NAMES, label, strict=True) if value)
        for label in labels
    ]
    common: dict[str, Any] = {"model": str(of_attributes), "seed": 3}
    rows: dict[str, Any] = {"pairs": 2, "columns": 2}
    hidden: dict[str, Any] = {
        "data": str(real),
        "mask": "left-half",
        "num_images": 2,
        "num_completions": 1,
        "num_rounds": 1,
    }
    ways: dict[str, dict[str, Any]] = {
        "drawn": {"labels": "data", "real": str(real)},
        "named": {"label": ", ".join(named)},
    }
    for name, asked in ways.items():
        assert interpolate_run(InterpolateOptions(**common, **rows, **asked, out=str(tmp_path / name / "rows"))) == 0
        assert inpaint_run(InpaintOptions(**common, **hidden, **asked, out=str(tmp_path / name / "inpaint"))) == 0
    for job in ("rows", "inpaint"):
        drawn, named = (sorted((tmp_path / name / job / "images").glob("*.png")) for name in ("drawn", "named"))
        assert len(drawn) >= 4 and [path.read_bytes() for path in drawn] == [path.read_bytes() for path in named]
    told = json.loads((tmp_path / "drawn/rows/request.json").read_text())["label_data"]
    assert told == {"fingerprint": open_index(str(real)).fingerprint, "images": 26}
