"""The classification job: labels by Bayes' rule as its parts compute them, what it writes and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_unit_range
from drl_dist.config.condition import ConditionConfig
from drl_dist.data.filesystem import Folder
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.classify import driver, work
from drl_dist.jobs.classify.driver import classify_run
from drl_dist.jobs.classify.options import ClassifyOptions, check_classify
from drl_dist.jobs.classify.output import reliability_png
from drl_dist.jobs.common.output import job_records
from drl_dist.library.engine import averaged_network
from drl_dist.library.stored import load_model
from drl_dist.likelihood.auroc import auroc
from drl_dist.likelihood.bayes import (
    Constants,
    attribute_conditions,
    class_conditions,
    default_level,
    fit_constants,
    label_energies,
)
from drl_dist.likelihood.calibration import Answers, label_scores
from drl_dist.likelihood.questions import questions_of
from tests.data.sets import pixels_of
from tests.helpers.labelled import NAMES, attributes_of, class_of, write_images, write_model
from tests.helpers.steps import tiny_unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of each kind, and images."""
    folder = tmp_path_factory.mktemp("classify")
    for kind in ("class", "attributes", "none"):
        write_model(folder / kind, kind)
    write_images(folder / "data", range(26))
    write_images(folder / "fit", range(100, 130))
    write_images(folder / "other", range(200, 220))
    return folder


def options(folder: Path, out: Path, **changed: Any) -> ClassifyOptions:
    fields = {"model": str(folder / "class"), "data": str(folder / "data"), "out": str(out), "seed": 5, "batch_size": 8}
    for name in ("model", "data", "fit_data", "other"):
        if name in changed:
            changed[name] = str(folder / changed[name]) if changed[name] else ""
    found = ClassifyOptions(**(fields | changed))
    check_classify(found)
    return found


def energies(folder: Path, kind: str, numbers: range, level: int, conditions: torch.Tensor) -> torch.Tensor:
    model = load_model(str(folder / kind), None)
    network = averaged_network(model.experiment, model.ema, torch.device("cpu"))
    ladder = build_ladder(model.experiment.diffusion)
    levels = build_levels(model.experiment, ladder)
    x = to_unit_range(torch.from_numpy(np.stack([pixels_of(number) for number in numbers])))
    ids = torch.arange(len(numbers))
    return label_energies(network, ladder, levels, PhiloxNoise(5), x, ids, level, conditions, num_draws=4)


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "classify.json").read_text())


def test_classes_are_those_of_bayes_rule(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert classify_run(options(folder, out, fit_data="fit", other="other")) == 0
    report = report_of(out)
    assert report["inverse_temperature"] != 1, "or calibrated constants are those that are fitted"
    fit_labels = torch.tensor([class_of(number) for number in range(100, 130)])[:, None]
    labels = torch.tensor([class_of(number) for number in range(26)])
    known = labels >= 0
    # Every level was tried on the fit data, and the best is the one that is used.
    best: tuple[float, float] = (-1.0, 0.0)
    for row in report["levels"]:
        found = energies(folder, "class", range(100, 130), row["level"], class_conditions(3))[:, None, :3]
        constants = fit_constants(found, fit_labels, with_temperature=True)
        judged = fit_labels[:, 0] >= 0
        scores = label_scores(constants.log_posterior(found)[judged, 0], fit_labels[judged, 0])
        assert row["fit_accuracy"] == pytest.approx(scores.accuracy)
        best = max(best, (scores.accuracy, -scores.log_loss))
    assert [row["level"] for row in report["levels"]] == [0, 1, 2, 3, 4, 5]
    level = report["level"]
    assert report["levels"][level]["fit_accuracy"] == pytest.approx(best[0])
    # Constants of the fit data, posterior of the data.
    found = energies(folder, "class", range(100, 130), level, class_conditions(3))[:, None, :3]
    values = energies(folder, "class", range(26), level, class_conditions(3))
    for name, constants in (
        ("equal", Constants.equal(1, 3)),
        ("fitted", fit_constants(found, fit_labels, with_temperature=False)),
        ("calibrated", fit_constants(found, fit_labels, with_temperature=True)),
    ):
        expected = label_scores(constants.log_posterior(values[:, None, :3])[known, 0], labels[known]).as_json()
        assert report["by_constants"][name] == pytest.approx(expected, rel=1e-3)
    assert report["constants"] == "calibrated" and report["ece"] == report["by_constants"]["calibrated"]["ece"]
    assert (report["num_images"], report["num_labelled"], report["step"]) == (26, 23, 7)
    # What offsets imply of log Z is the offsets less the prior.
    constants = fit_constants(found, fit_labels, with_temperature=False)
    counts = torch.bincount(fit_labels[fit_labels >= 0], minlength=3)
    log_z = counts.log() - constants.offset[0]
    expected = dict(zip(NAMES, (log_z - log_z.mean()).tolist(), strict=True))
    assert report["log_z"] == pytest.approx(expected, abs=1e-3)
    # The matrix, and each class by itself.
    table = np.array(report["confusion"])
    assert table.sum(1).tolist() == [int((labels == place).sum()) for place in range(3)]
    assert report["accuracy"] == pytest.approx(np.trace(table) / 23)
    per_class = [report["per_label"][name]["accuracy"] for name in NAMES]
    assert per_class == pytest.approx((np.diag(table) / table.sum(1)).tolist())
    assert report["mean_accuracy"] == pytest.approx(np.mean(per_class))
    assert sum(report["reliability"]["counts"]) == 23
    # Densities have the fitted offsets and no temperature.
    other = energies(folder, "class", range(200, 220), level, class_conditions(3))
    inside, outside = (constants.log_evidence(part[:, None, :3])[:, 0].contiguous() for part in (values, other))
    assert report["out_of_distribution"]["auroc_summed"] == pytest.approx(auroc(inside, outside), abs=1e-6)
    assert "fitted by maximum likelihood to 26 labelled images" in report["assumption"]
    # A row for each image, also those without a label.
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    assert [row["image"] for row in rows] == list(range(26))
    assert [row["key"] for row in rows] == [f"{number:09d}" for number in range(26)]
    assert [row["label"] for row in rows] == [None if label < 0 else NAMES[label] for label in labels.tolist()]
    given = [max(NAMES, key=lambda name: row[f"p({name})"]) for row in rows]
    assert [row["predicted"] for row in rows] == given
    assert sum(rows[3][f"p({name})"] for name in NAMES) == pytest.approx(1)
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / 23 == pytest.approx(report["accuracy"])
    printed = capsys.readouterr().out
    assert "  calibrated  " in printed and "AUROC" in printed
    with Image.open(out / "reliability.png") as image:
        assert image.width >= 800 and "step 7" in image.info["Description"]
    assert sorted(path.name for path in out.iterdir()) == [
        "classify.json",
        "predictions.parquet",
        "reliability.png",
        "request.json",
    ]


def test_auroc_is_that_of_both_scores(folder: Path, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    assert classify_run(options(folder, tmp_path, other="other", level="2")) == 0
    inside, outside = (
        energies(folder, "class", numbers, 2, class_conditions(3)) for numbers in (range(26), range(200, 220))
    )
    truth = [1] * 26 + [0] * 20
    found = report_of(tmp_path)["out_of_distribution"]
    for name, score in (
        ("auroc_unlabelled", lambda values: values[:, 3]),
        ("auroc_summed", lambda values: values[:, :3].logsumexp(1)),
    ):
        expected = roc_auc_score(truth, torch.cat([score(inside), score(outside)]).numpy())
        assert found[name] == pytest.approx(expected, abs=0.01)
    assert found["num_other"] == 20


@pytest.mark.parametrize("given", ["", "bee"])
def test_attributes_are_inferred_each_by_itself(given: str, folder: Path, tmp_path: Path) -> None:
    assert (
        classify_run(
            options(folder, tmp_path, model="attributes", fit_data="fit", level="3", given=given, other="other")
        )
        == 0
    )
    report, asked = report_of(tmp_path), [0, 2] if given else [0, 1, 2]

    def truth(numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.tensor([attributes_of(number) for number in numbers])
        known = torch.zeros_like(labels)
        if given:
            known[:, 1] = labels[:, 1]
        values = energies(folder, "attributes", numbers, 3, attribute_conditions(known, asked))
        return values[:, :-1].reshape(len(numbers), len(asked), 2), labels[:, asked]

    fit_values, fit_labels = truth(range(100, 130))
    values, labels = truth(range(26))
    answers = torch.where(fit_labels == 0, -1, (fit_labels + 1) // 2)
    constants = fit_constants(fit_values, answers, with_temperature=True)
    odds = constants.log_posterior(values).exp()[..., 1]
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert report["labels"] == [NAMES[place] for place in asked]
    for place, attribute in enumerate(asked):
        name = NAMES[attribute]
        assert [row[f"p({name})"] for row in rows] == pytest.approx(odds[:, place].tolist(), abs=1e-3)
        told = [{1: True, -1: False, 0: None}[value] for value in labels[:, place].tolist()]
        assert [row[f"label({name})"] for row in rows] == told
        right = [(row[f"p({name})"] > 0.5) == value for row, value in zip(rows, told, strict=True) if value is not None]
        assert report["per_label"][name]["accuracy"] == pytest.approx(sum(right) / len(right))
    accuracies = [row["accuracy"] for row in report["per_label"].values()]
    assert report["mean_accuracy"] == pytest.approx(np.mean(accuracies))
    assert report["confusion"] is None and "auroc_summed" not in report["out_of_distribution"]


def test_without_fit_data_the_constants_are_equal_and_it_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify_run(options(folder, tmp_path, num_draws=1)) == 0
    report = report_of(tmp_path)
    ladder = build_ladder(tiny_unet().diffusion)
    assert report["level"] == default_level(ladder, tiny_unet().model.data_std)
    assert report["constants"] == "equal" and list(report["by_constants"]) == ["equal"]
    assert report["log_z"] is None and set(report["offsets"].values()) == {0.0}
    assert "log Z_t(c) was taken to be the same for all labels" in report["assumption"]
    assert "without --fit-data nothing could be fitted: the constants are equal" in capsys.readouterr().out


def test_the_default_level_has_noise_as_wide_as_the_data() -> None:
    ladder = build_ladder(dataclasses.replace(tiny_unet().diffusion, ladder="geometric", num_levels=10))
    ratio = ladder.cumulative_std / ladder.cumulative_scale
    for std in (0.1, 0.75):
        found = default_level(ladder, std)
        assert abs((ratio[:-1] / std).log()).argmin() == found
    assert default_level(ladder, 0.1) < default_level(ladder, 0.75)


def test_images_without_any_label_are_predicted_all_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = range(6, 6 + 7 * 20, 7)
    assert {class_of(number) for number in numbers} == {-1}
    write_images(tmp_path / "unlabelled", numbers)
    given = options(folder, tmp_path / "out", fit_data="fit", level="2")
    assert classify_run(dataclasses.replace(given, data=str(tmp_path / "unlabelled"))) == 0
    report = report_of(tmp_path / "out")
    assert report["accuracy"] is None and report["reliability"] is None and report["num_labelled"] == 0
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert len(rows) == 20 and all(row["label"] is None and row["predicted"] in NAMES for row in rows)
    assert not (tmp_path / "out" / "reliability.png").exists()
    assert "reliability.png" not in capsys.readouterr().out


class Killed(BaseException):
    """Ends the job after a write."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_job_resumes_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "reliability_png", lambda *_: b"picture")
    monkeypatch.setattr(job_records, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(job_records, "_COST", 0)
    given = options(folder, tmp_path / "straight", fit_data="fit", other="other", num_draws=1)
    assert classify_run(given) == 0
    killed = dataclasses.replace(given, out=str(tmp_path / "killed"))
    write, left = Folder.write, 0

    def cut_short(self: Folder, name: str, data: bytes) -> None:
        nonlocal left
        write(self, name, data)
        left -= 1
        if left == 0:
            raise Killed

    monkeypatch.setattr(Folder, "write", cut_short)
    for left in (3, 20, 5, 5):  # noqa: B007 - counted down by each write
        with pytest.raises(Killed):
            classify_run(killed)
        assert not (tmp_path / "killed" / "classify.json").exists()
        with pytest.raises(UserError, match=r"got another request \(seed: 5 -> 6\)"):
            classify_run(dataclasses.replace(killed, seed=6))
    left = -1
    capsys.readouterr()
    assert classify_run(killed) == 0
    assert "resumes at image 26 of 26 of the data at level" in capsys.readouterr().out
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    # Done, it has nothing to do; another request is refused.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").iterdir()}
    assert classify_run(killed) == 0
    assert "already holds this classification, in classify.json; nothing to do" in capsys.readouterr().out
    for changed in ({"level": "2"}, {"constants": "equal"}, {"num_draws": 2}, {"fit_data": ""}):
        with pytest.raises(UserError, match=r"got another request"):
            classify_run(dataclasses.replace(killed, **changed))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").iterdir()} == before


def test_what_cannot_be_asked_is_refused_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "renamed", range(26), ("bee", "ant", "cow"))
    write_images(tmp_path / "nameless", range(26), made_by={})
    write_images(tmp_path / "one", range(300, 336, 3))
    out = tmp_path / "out"
    given = options(folder, out)
    for changed, message in (
        (
            {"model": str(folder / "none")},
            r"model .*/none: got energies of images alone .*, expected energies that",
        ),
        ({"data": str(tmp_path / "nameless")}, r"data .*: got images without classes, expected classes with names"),
        ({"data": str(tmp_path / "renamed")}, r"data .*: got 3 names of classes: bee, ant, cow, expected the 3 of the"),
        ({"fit_data": str(tmp_path / "renamed")}, r"fit data .*: got 3 names of classes: bee, ant, cow"),
        ({"fit_data": given.data}, r"option --fit-data: got the images of --data, .*, expected other images"),
        (
            {"fit_data": str(tmp_path / "one")},
            r"fit data .*: got no image that is class (bee|cow), expected an",
        ),
        ({"level": "6"}, r"option --level: got 6, expected auto, or a number from 0 to 5"),
        ({"given": "ant"}, r"option --given: got ant, expected none, since the model knows classes"),
        ({"num_images": 40}, r"data .*: got 26 images, expected at least 40"),
        (
            {"model": str(folder / "attributes"), "given": "dog"},
            r"--given: got dog, expected some of the model's",
        ),
        ({"model": str(folder / "attributes"), "given": "ant,bee,cow"}, r"--given: got ant,bee,cow, expected some of"),
    ):
        with pytest.raises(UserError, match=message):
            classify_run(dataclasses.replace(given, **changed))
        assert not out.exists(), message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": ""}, "got no --model"),
        ({"level": "high"}, "option --level: got high, expected auto, or a number from 0"),
        ({"level": "-1"}, "option --level: got -1"),
        ({"num_draws": 0}, "--num-draws: got 0"),
        ({"num_images": 0}, "--num-images: got 0"),
        ({"batch_size": 0}, "--batch-size: got 0"),
        ({"seed": -1}, "--seed: got -1"),
        ({"constants": "some"}, "--constants: got some"),
        ({"fit_data": "fit"}, "--fit-data: got fit"),
    ],
)
def test_impossible_options_are_refused(changed: dict[str, Any], message: str) -> None:
    given = ClassifyOptions(model="/m", data="/d", out="/o")
    check_classify(given)
    with pytest.raises(UserError, match=message):
        check_classify(dataclasses.replace(given, **changed))


def test_the_picture_shows_reliability() -> None:
    questions = questions_of(ConditionConfig(kind="class", names=NAMES), (), "/m", "option --given")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300, 1), generator=generator)
    right = torch.nn.functional.one_hot(labels, 3).double()
    sure, unsure = (Answers(torch.log_softmax(scale * right, 2), labels) for scale in (9.0, 1.0))

    def place_of_blue(answers: Answers) -> float:
        """How far to the right of the left panel the first constants' bins are, 0.25 to 0.53 of the width."""
        data = reliability_png(questions, {"equal": answers}, "equal", "of a test")
        with Image.open(io.BytesIO(data)) as image:
            assert image.width >= 800
            width, pixels = image.width, np.asarray(image.convert("RGB")).astype(int)
        # Right of the legend, left of the matrix.
        shown = pixels[:, width // 4 : int(0.53 * width)]
        places = np.argwhere((shown[..., 2] - shown[..., 0] > 100) & (shown[..., 2] > 150))
        return float(np.median(places[:, 1])) / width + 0.25

    assert place_of_blue(sure) > 0.48 and 0.3 < place_of_blue(unsure) < 0.4
    assert work.record_name("fit", 3) == "fit-3.safetensors"
