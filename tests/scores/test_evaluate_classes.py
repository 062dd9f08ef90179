"""Scores by class: FID of each class, and what a classifier takes images for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drl_dist.common.errors import UserError
from drl_dist.common.torchvision_import import make_importable
from drl_dist.data.index import open_index
from drl_dist.data.subset import image_batches, labelled_batches, labels_of, spread
from drl_dist.evaluation.classes import ClassFid, Recognition, class_fids, intra_fid, recognition
from drl_dist.evaluation.distances import fid
from drl_dist.evaluation.feature_spec import parse_classifier, parse_features
from drl_dist.evaluation.features import features_of
from drl_dist.evaluation.networks import load_network
from drl_dist.jobs.evaluate.driver import evaluate_run
from drl_dist.jobs.evaluate.options import EvaluateOptions, check_evaluate
from tests.data.sets import write_set
from tests.helpers.labelled import NAMES, class_of, write_images
from tests.scores.tiny import script, tiny_network

COUNT = 60
SAMPLES, DATA = range(COUNT), range(100, 175)
TIMM = "test_resnet"


class ReadsNumbers(nn.Module):
    """The class that an image's number says, but the next one for every fifth number."""

    def forward(self, images: Tensor) -> Tensor:
        number = images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()
        return nn.functional.one_hot((number + (number % 5 == 0).long()) % 3, 3).float()


def options(folder: Path, **changed: object) -> EvaluateOptions:
    fields: dict[str, object] = {
        "samples": str(folder / "samples"),
        "data": str(folder / "data"),
        "features": tiny_network(folder),
        "num_images": COUNT,
        "batch_size": 16,
        "cache_dir": str(folder / "cache"),
        "json": str(folder / "scores.json"),
    }
    return EvaluateOptions(**fields | changed)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labelled noise; of the data, four images in five are compared."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_images(tmp_path / "samples", SAMPLES)
    write_images(tmp_path / "data", DATA)
    return tmp_path


def scored(options: EvaluateOptions) -> dict[str, Any]:
    assert evaluate_run(options) == 0
    return json.loads(Path(options.json or "").read_text())


def compared_data() -> list[int]:
    return [DATA[place] for place in spread(len(DATA), COUNT)]


def of_class(numbers: Sequence[int], label: int) -> Any:
    return [number for number in numbers if class_of(number) == label]


def test_the_fid_of_a_class_is_that_of_folders_with_this_class_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = scored(options(folder, per_class=True))
    shown = capsys.readouterr().out
    network = load_network(parse_features(tiny_network(folder)), torch.device("cpu"))
    fids: list[float] = []
    for label, name in enumerate(NAMES):
        numbers = {"samples": of_class(SAMPLES, label), "data": of_class(compared_data(), label)}
        values: list[Tensor] = []
        for what, some in numbers.items():
            write_images(folder / f"{what}-{name}", some)
            index = open_index(str(folder / f"{what}-{name}"))
            values.append(features_of(network, image_batches(index, len(some), 16)).values)
        row = report["per_class"][label]
        assert row["fid"] == pytest.approx(fid(*values), rel=1e-6)
        assert (row["name"], row["num_samples"], row["num_data"]) == (name, *map(len, numbers.values()))
        assert f"  {name}: FID {row['fid']:.4f} (generated {row['num_samples']}, real {row['num_data']})" in shown
        fids.append(row["fid"])
    assert len({round(value, 6) for value in fids}) == 3
    assert report["intra_fid"] == pytest.approx(sum(fids) / 3, rel=1e-9)
    assert f"mean FID of the classes {report['intra_fid']:.4f}" in shown
    # The FID of all is that of the command without the option, and is not their mean.
    (folder / "scores.json").unlink()
    plain = scored(options(folder))
    assert plain["fid"] == report["fid"] != report["intra_fid"]
    assert plain["per_class"] is plain["intra_fid"] is plain["classifier"] is plain["accuracy"] is None


def test_classes_of_too_few_images_are_named_and_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cows = of_class(SAMPLES, 2)
    write_images(folder / "few", sorted({*SAMPLES} - {*cows[1:]}))  # pyright: ignore[reportArgumentType]
    report = scored(options(folder, samples=str(folder / "few"), num_images=40, per_class=True))
    *others, cow = report["per_class"]
    assert (cow["name"], cow["fid"], cow["num_samples"]) == ("cow", None, 1) and cow["num_data"] > 1
    assert report["intra_fid"] == pytest.approx(sum(row["fid"] for row in others) / 2, rel=1e-9)
    assert "left out, with fewer than 2 images in one of the folders: cow\n" in capsys.readouterr().out
    # On either side.
    assert class_fids(torch.rand(4, 3), torch.zeros(4), torch.rand(1, 3), torch.zeros(1), ["a"])[0].fid is None
    assert intra_fid([ClassFid("a", None, 1, 1)]) is None


@pytest.mark.parametrize("is_pair", [False, True])
def test_a_classifier_that_reads_the_label_has_a_known_accuracy(
    is_pair: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reads = ReadsNumbers()

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images.float().mean((2, 3)), self.reads(images)

    classifier = script(Pair() if is_pair else ReadsNumbers(), folder / "judge.pt")
    report = scored(options(folder, classifier=classifier))
    labelled = [number for number in SAMPLES if class_of(number) >= 0]
    wrong = [number for number in labelled if number % 5 == 0]
    found = report["classifier"]
    assert 0 < len(wrong) < len(labelled) < COUNT
    assert found["num_images"] == len(labelled)
    assert found["accuracy"] == report["accuracy"] == pytest.approx(1 - len(wrong) / len(labelled), rel=1e-12)
    of_data = [number for number in compared_data() if class_of(number) >= 0]
    right = sum(number % 5 != 0 for number in of_data)
    assert found["accuracy_of_data"] == pytest.approx(right / len(of_data), rel=1e-12) != found["accuracy"]
    for label, name in enumerate(NAMES):
        count, missed = len(of_class(labelled, label)), len(of_class(wrong, label))
        row = [0, 0, 0]
        row[label], row[(label + 1) % 3] = count - missed, missed
        assert found["confusion"][label] == row, "asked for in rows, taken for in columns"
        assert found["classes"][label] == {"name": name, "accuracy": 1 - missed / count, "num_samples": count}
    shown = capsys.readouterr().out
    assert f"accuracy {found['accuracy']:.4f} (real images {found['accuracy_of_data']:.4f}) of 52 labelled" in shown


def test_a_timm_model_with_weights_of_its_own_judges(folder: Path) -> None:
    make_importable()
    import timm

    torch.manual_seed(0)
    for count in (3, 5):
        model = timm.create_model(TIMM, pretrained=False, num_classes=count)
        save_file(model.state_dict(), folder / f"{count}.safetensors")
    found = scored(options(folder, classifier=f"timm:{TIMM}={folder}/3.safetensors"))["classifier"]
    assert sum(map(sum, found["confusion"])) == found["num_images"] == 52
    with pytest.raises(UserError, match=r"got size mismatch for fc\.weight.*shape torch.Size\(\[5,"):
        evaluate_run(options(folder, classifier=f"timm:{TIMM}={folder}/5.safetensors", json=None))


def test_data_without_classes_suffice_for_a_classifier(folder: Path) -> None:
    write_set(str(folder / "plain"), (COUNT,))
    classifier = script(ReadsNumbers(), folder / "judge.pt")
    report = scored(options(folder, data=str(folder / "plain"), classifier=classifier))
    assert report["classifier"]["accuracy_of_data"] is None and 0 < report["accuracy"] < 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"per_class": True, "samples": "plain"}, "samples .*plain: got images without classes, expected classes with"),
        ({"per_class": True, "data": "plain"}, "data .*plain: got images without classes, .* since --per-class is"),
        ({"classifier": "judge.pt", "samples": "plain"}, "samples .*plain: got images without classes, .*--classifier"),
        ({"per_class": True, "data": "others"}, "data .*others: got 3 classes: bee, ant, cow, expected the 3 of the"),
        ({"classifier": "judge.pt", "data": "others"}, "data .*others: got 3 classes: bee, ant, cow"),
        ({"per_class": True, "samples": "bare"}, "samples .*bare: got no label in 60 images"),
        ({"per_class": True, "samples": "ants", "data": "bees"}, "got no class with 2 images in either, expected at"),
        (
            {"classifier": "four.pt"},
            r"classifier torchscript:.*four\.pt: got 4 outputs, expected 3, one for each class",
        ),
        ({"classifier": "one.pt"}, r"classifier torchscript:.*one\.pt: got 1 output, expected 3, one for each class"),
    ],
)
def test_what_cannot_be_scored_by_class_is_told_in_a_sentence(changed: dict[str, Any], told: str, folder: Path) -> None:
    write_set(str(folder / "plain"), (COUNT,))
    write_images(folder / "others", SAMPLES, names=("bee", "ant", "cow"))
    write_images(folder / "bare", [6 + 7 * number for number in range(COUNT)])  # pyright: ignore[reportArgumentType]
    for label, name in enumerate(("ants", "bees")):
        write_images(folder / name, of_class(range(300), label)[:COUNT])
    script(ReadsNumbers(), folder / "judge.pt")
    tiny_network(folder)
    (folder / "tiny-3-0.pt").rename(folder / "four.pt")
    script(OneOutput(), folder / "one.pt")
    changed = {
        name: value
        if value is True
        else f"torchscript:{folder / value}"
        if name == "classifier"
        else str(folder / value)
        for name, value in changed.items()
    }
    with pytest.raises(UserError, match=told) as caught:
        evaluate_run(options(folder, **changed))
    assert "\n" not in str(caught.value)
    assert not (folder / "scores.json").exists() and not (folder / "cache").exists()


class OneOutput(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("classifier", ["inception", "pixels", "resnet18", "torchscript"])
def test_other_words_are_no_classifier(classifier: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^--classifier: got '{classifier}', expected torchscript:PATH, timm:NAME or"):
        check_evaluate(options(tmp_path, classifier=classifier))
    with pytest.raises(UserError, match=r"got the path net\.pt, expected"):
        parse_classifier("torchscript:net.pt")


def test_scores_by_class_are_added_to_a_report_and_never_lost(folder: Path) -> None:
    first, second = (script(module, folder / f"{module}.pt") for module in (ReadsNumbers(), Rolled()))
    plain = scored(options(folder))
    both = scored(options(folder, per_class=True, classifier=first))
    changing = ("extras", "per_class", "intra_fid", "classifier", "accuracy")
    assert all(both[name] == plain[name] for name in plain if name not in changing)
    before = (folder / "scores.json").read_bytes()
    for changed, told in (
        ({}, "extras.per_class: True -> False"),
        ({"per_class": True}, "extras.classifier: .* -> None"),
        ({"per_class": True, "classifier": second}, "extras.classifier: .* -> torchscript"),
    ):
        with pytest.raises(UserError, match=f"the scores of another comparison .*{told}"):
            evaluate_run(options(folder, **changed))
        assert (folder / "scores.json").read_bytes() == before


class Rolled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def test_labels_are_those_of_the_images(folder: Path) -> None:
    index = open_index(str(folder / "data"))
    expected = torch.cat([batch.labels for batch in labelled_batches(index, 31, 8, "class")])
    assert torch.equal(labels_of(index, 31, "class"), expected)
    assert expected.tolist() == [class_of(DATA[place]) for place in spread(len(DATA), 31)]


def test_images_without_a_label_count_for_no_class() -> None:
    found = recognition(torch.eye(2)[[0, 1, 1, 0]], torch.tensor([0, 0, -1, -1]))
    assert found.confusion.tolist() == [[1, 1], [0, 0]]
    assert (found.num_images, found.accuracy, found.by_class) == (2, 0.5, [0.5, None])
    assert isinstance(found, Recognition)
