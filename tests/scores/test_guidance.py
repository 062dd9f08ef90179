"""What guidance costs and gains: the benchmark's table and picture, and what it keeps."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import digit_features, guidance
from benchmarks.guidance import CURVE, TABLE, guidances_of, main, named_networks
from benchmarks.guidance_report import accuracy_of, draw, kinds_of, shares, table
from benchmarks.quality.data import load_data
from benchmarks.quality.features import feature_network
from drl_dist.common.errors import UserError
from drl_dist.common.images import MIN_WIDTH
from drl_dist.data.index import CLASSES, open_index
from drl_dist.data.subset import image_batches, labels_of
from drl_dist.evaluation.classes import recognition
from drl_dist.evaluation.distances import fid
from drl_dist.evaluation.feature_spec import parse_features
from drl_dist.evaluation.features import features_of
from drl_dist.evaluation.networks import load_network
from drl_dist.library.load import load
from tests.data.sets import write_set
from tests.helpers.labelled import NAMES, write_images, write_model
from tests.scores.tiny import script, tiny_network

IMAGES = 21


class Judge(nn.Module):
    """Three logits of the mean grey."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.float().mean((1, 2, 3)) / 64
        return torch.stack([grey, 4 - grey, torch.full_like(grey, 2.01)], 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "class", "class")
    write_images(tmp_path / "data", range(40))
    script(Judge(), tmp_path / "judge.pt")
    tiny_network(tmp_path)
    return tmp_path


def words(folder: Path, **changed: str) -> list[str]:
    given = {
        "model": str(folder / "class"),
        "data": str(folder / "data"),
        "out": str(folder / "out"),
        "images": str(IMAGES),
        "guidances": "0,2",
        "features": f"torchscript:{folder}/tiny-3-0.pt",
        "classifier": f"torchscript:{folder}/judge.pt",
        "kinds": f"{NAMES[0]}, {NAMES[1]}",
    }
    return [word for name, value in (given | changed).items() for word in (f"--{name}", value)]


def test_every_guidance_is_scored_as_its_samples_are_and_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words(folder)) == 0
    shown = capsys.readouterr().out
    points = {w: json.loads((folder / "out" / "points" / f"{w}.json").read_text()) for w in (0, 2)}
    model, index = load(folder / "class"), open_index(str(folder / "data"))
    network, judge = (
        load_network(parse_features(f"torchscript:{folder}/{name}.pt"), torch.device("cpu"))
        for name in ("tiny-3-0", "judge")
    )
    real = features_of(network, image_batches(index, 40, 64)).values
    for w, point in points.items():
        images = model.sample(IMAGES, labels="uniform", guidance=float(w), batch_size=IMAGES)
        assert point["fid"] == pytest.approx(fid(network(images).values, real), rel=1e-6)
        asked = torch.arange(IMAGES) % 3
        assert point["confusion"] == recognition(judge(images).values, asked).confusion.tolist()
        assert f"| {w} | {point['fid']:.3f} | {point['intra_fid']:.3f} | " in shown
    assert points[0]["fid"] != points[2]["fid"]
    seen = judge(torch.cat([*image_batches(index, 40, 64)])).values
    labels = labels_of(index, 40, "class")
    confusion = recognition(seen, labels).confusion
    kinds = [[0, 1], [2]]
    accuracies = [recognition(seen, labels).accuracy, accuracy_of(confusion.tolist(), kinds)]
    assert accuracies[0] < accuracies[1]
    assert f"| real images |  |  |  |  | {accuracies[0]:.3f} | {accuracies[1]:.3f} |  |" in shown
    free = model.sample(IMAGES, batch_size=IMAGES)
    assert f"| no label | {fid(network(free).values, real):.3f} |  | " in shown
    taken = torch.bincount(judge(free).values.argmax(1), minlength=3).tolist()
    assert shown.endswith(shares(NAMES, taken, torch.bincount(labels[labels >= 0]).tolist()))
    assert (folder / "out" / TABLE).read_text() == shown
    assert Image.open(folder / "out" / CURVE).width >= MIN_WIDTH

    # What is finished is not made again, and another w joins it.
    made: list[float] = []
    measure = guidance.measure

    def counted(model: Any, names: Any, w: float, *rest: Any) -> Any:
        made.append(w)
        return measure(model, names, w, *rest)

    monkeypatch.setattr(guidance, "measure", counted)
    assert main(words(folder)) == 0
    assert (made, capsys.readouterr().out) == ([], shown)
    assert main(words(folder, guidances="2,0.5,0")) == 0
    assert made == [0.5]
    lines = capsys.readouterr().out.splitlines()
    first = [line.split(" | ")[0] for line in lines[2:7]]
    assert first == ["| 0", "| 0.5", "| 2", "| no label", "| real images"]
    assert lines[2] == shown.splitlines()[2]
    for changed in ({"images": "30"}, {"seed": "1"}, {"classifier": f"torchscript:{folder}/tiny-1-1.pt"}):
        script(nn.Sequential(Judge(), nn.Identity()), folder / "tiny-1-1.pt")
        with pytest.raises(UserError, match="got the folder of another request"):
            main(words(folder, **changed))


def test_digits_have_networks_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(digit_features, "_STEPS", 20)
    data = load_data("digits", "")
    one, other = (feature_network(data, tmp_path / "none", seed=seed)[0] for seed in (0, 1))
    assert one.identity != other.identity
    assert not torch.equal(one(data.held_out).values, other(data.held_out).values)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"guidances": "0,-1"}, r"--guidances: got 0,-1, expected finite numbers of at least 0, separated by commas"),
        ({"guidances": "0,nan"}, "--guidances: got 0,nan"),
        ({"guidances": "much"}, "--guidances: got much"),
        ({"kinds": "cow;wasp"}, r"--kinds: got 'wasp', expected names of the classes \(ant, bee, cow\)"),
        ({"judge-seed": "0"}, "--judge-seed: got 0, expected another than 0, that of the features"),
        ({"images": "19"}, "--images: got 19, expected at least 20"),
        ({"model": "plain"}, "model .*plain: got condition.kind none, expected a model of classes"),
        ({"model": "attributes"}, "got condition.kind attributes"),
        ({"data": "bare"}, "data .*bare .*: got images without classes"),
        ({"data": "others"}, "data .*others .*: got 3 names of classes: bee, ant, cow, expected the 3 of the model"),
        ({"classifier": "pixels"}, "--classifier: got 'pixels'"),
        (
            {"features": "own"},
            "data .*data: got images of toy, 8 pixels wide, of 3 classes, expected digits or fashion",
        ),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(
    changed: dict[str, str], told: str, folder: Path
) -> None:
    write_model(folder / "plain", "none")
    write_model(folder / "attributes", "attributes")
    write_set(str(folder / "bare"), (30,))
    write_images(folder / "others", range(30), names=("bee", "ant", "cow"))
    changed = {name: str(folder / value) if name in ("model", "data") else value for name, value in changed.items()}
    with pytest.raises(UserError, match=told) as caught:
        main(words(folder, **changed))
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_every_class_needs_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidance, "_FEWEST", 1)
    with pytest.raises(UserError, match="--images: got 5, expected at least 6, for all classes"):
        main(words(folder, images="5"))
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("changed", "is_own"),
    [({}, True), ({"resolution": 16}, False), ({"name": "toy"}, False), ({"made_by": {CLASSES: ["a"]}}, False)],
)
def test_networks_are_trained_here_for_known_images_alone(changed: dict[str, Any], is_own: bool, folder: Path) -> None:
    digits = {"name": "digits", "made_by": {CLASSES: [str(digit) for digit in range(10)]}}
    index = dataclasses.replace(open_index(str(folder / "data")), **digits | changed)
    given = argparse.Namespace(features="own", classifier="own", source="")
    if is_own:
        assert named_networks(given, index) == [None, None]
    else:
        with pytest.raises(UserError, match="expected digits or fashion_mnist in the size of its preset"):
            named_networks(given, index)


def test_numbers_of_guidances_are_sorted() -> None:
    assert guidances_of("2,0,.5,2") == (0, 0.5, 2)


def test_classes_that_are_not_named_are_kinds_of_their_own() -> None:
    assert kinds_of("d, a;b", "abcd") == [[3, 0], [1], [2]]
    assert kinds_of("", "ab") == [[0], [1]]
    with pytest.raises(UserError, match="--kinds: got 'a' twice, expected"):
        kinds_of("a,b;a", "abcd")


def test_the_share_of_each_class_is_compared_with_the_data() -> None:
    assert shares("abc", [3, 1, 0], [2, 2, 0]).splitlines()[2:] == [
        "| a | 0.750 | 0.500 | 1.50 |",
        "| b | 0.250 | 0.500 | 0.50 |",
        "| c | 0.000 | 0.000 |  |",
    ]


def test_the_table_and_the_picture_of_one_point() -> None:
    scores = {"fid": 2.0, "precision": 0.5, "recall": 0.25, "seconds_per_image": 0.1}
    point = scores | {"guidance": 1.0, "intra_fid": None, "confusion": [[1, 1, 0], [0, 2, 0], [0, 1, 3]]}
    real = {"confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    rows = table([point], scores, real, [[0, 1], [2]])
    assert "| 1 | 2.000 |  | 0.500 | 0.250 | 0.750 | 0.875 | 0.1 |\n" in rows
    assert "| no label | 2.000 |  | 0.500 | 0.250 |  |  | 0.1 |\n" in rows
    with Image.open(io.BytesIO(draw([point, point], real, "two points at one place"))) as picture:
        assert picture.width >= MIN_WIDTH
    assert len(NAMES) == 3
