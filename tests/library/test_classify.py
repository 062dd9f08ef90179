"""`Model.classify` infers what `jobs/classify.py` does, and refuses what it cannot use in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import drl_dist
from drl_dist.common.errors import UserError
from drl_dist.jobs.classify.driver import classify_run
from drl_dist.jobs.classify.options import ClassifyOptions
from drl_dist.library import label_inference
from tests.data.sets import pixels_of
from tests.helpers.labelled import NAMES, attributes_of, class_of, write_images, write_model

DATA, FIT = range(26), range(100, 130)

pytestmark = pytest.mark.filterwarnings("ignore:the energies were trained by short")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:  # pyright: ignore[reportUnusedFunction]
    # The number that the jobs below have.
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for kind in ("class", "attributes", "none"):
        write_model(folder / kind, kind)
    write_images(folder / "data", DATA)
    write_images(folder / "fit", FIT)
    return folder


def images(numbers: range) -> Tensor:
    return torch.from_numpy(np.stack([pixels_of(number) for number in numbers]))


def attributes(numbers: range) -> Tensor:
    return torch.tensor([attributes_of(number) for number in numbers])


def job(folder: Path, out: Path, **changed: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report of the job, and its rows."""
    options = {"model": str(folder / "class"), "data": str(folder / "data"), "out": str(out), "seed": 5}
    assert classify_run(ClassifyOptions(**options | {"batch_size": 8} | changed)) == 0  # pyright: ignore[reportArgumentType]
    return json.loads((out / "classify.json").read_text()), pq.read_table(out / "predictions.parquet").to_pylist()


def test_classes_are_those_of_the_job(folder: Path, tmp_path: Path) -> None:
    model = drl_dist.load(folder / "class")
    asked: dict[str, Any] = {"seed": 5, "batch_size": 8}
    assert model.label_names == NAMES
    report, rows = job(folder, tmp_path / "fitted", fit_data=str(folder / "fit"))
    constants = model.fit_constants(images(FIT), [class_of(number) for number in FIT], **asked)
    assert (constants.level, constants.inverse_temperature) == (report["level"], report["inverse_temperature"])
    assert constants.values.offset[0].tolist() == list(report["offsets"].values())
    found = model.classify(images(DATA), constants, **asked)
    assert found.dtype == torch.float64 and found.shape == (26, 3)
    assert found.tolist() == [[row[f"p({name})"] for name in NAMES] for row in rows]
    torch.testing.assert_close(found.sum(1), torch.ones(26, dtype=torch.float64))
    # Floating-point pixels, and arrays, are the same images.
    assert torch.equal(model.classify(images(DATA).float().numpy() / 255, constants, **asked), found)

    report, rows = job(folder, tmp_path / "equal")
    equal = model.classify(images(DATA), **asked)
    assert equal.tolist() == [[row[f"p({name})"] for name in NAMES] for row in rows]
    assert float((equal - found).abs().max()) > 0.05
    assert not torch.equal(model.classify(images(DATA), level=1, **asked), equal) and report["level"] != 1
    assert not torch.equal(model.classify(images(DATA), num_draws=1, **asked), equal)


def test_attributes_are_those_of_the_job_also_where_one_is_known(folder: Path, tmp_path: Path) -> None:
    model = drl_dist.load(folder / "attributes")
    asked: dict[str, Any] = {"seed": 5, "batch_size": 8}
    given = {"model": str(folder / "attributes"), "fit_data": str(folder / "fit"), "level": "3"}
    found: dict[tuple[str, ...], Tensor] = {}
    for known in ((), ("bee",)):
        _, rows = job(folder, tmp_path / "-".join(known), given=",".join(known), **given)
        constants = model.fit_constants(images(FIT), attributes(FIT), known=known, level=3, **asked)
        values = {name: attributes(DATA)[:, NAMES.index(name)] for name in known}
        found[known] = model.classify(images(DATA), constants, known=values, **asked)
        names = [name for name in NAMES if name not in known]
        assert found[known].tolist() == [[row[f"p({name})"] for name in names] for row in rows]
    assert float((found[()][:, [0, 2]] - found["bee",]).abs().max()) > 0.01
    # True of all images, in three spellings; and false of all.
    one, *others = (
        model.classify(images(DATA), known={"bee": value}, level=3)
        for value in (True, np.ones(26, np.int8), torch.ones(26, dtype=torch.bool), False)
    )
    assert torch.equal(one, others[0]) and torch.equal(one, others[1]) and not torch.equal(one, others[2])


def test_fitted_constants_undo_what_training_leaves_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Any number may be added to the energies of a label: log Z of the label is as much larger.
    model, labels = drl_dist.load(folder / "class"), [class_of(number) for number in FIT]

    def infer() -> tuple[Tensor, Tensor]:
        constants = model.fit_constants(images(FIT), labels, level=3)
        return model.classify(images(DATA), constants), model.classify(images(DATA), level=3)

    fitted, equal = infer()
    plain = label_inference.label_energies

    def shifted(*given: Any, **named: Any) -> Tensor:
        return plain(*given, **named) + torch.tensor([0.0, 9.0, -4.0, 0.0], dtype=torch.float64)

    monkeypatch.setattr(label_inference, "label_energies", shifted)
    fitted_too, equal_too = infer()
    torch.testing.assert_close(fitted_too, fitted, atol=1e-4, rtol=0)
    assert float((equal_too - equal).abs().max()) > 0.5


Use = Callable[[drl_dist.Model], object]


def classify(*given: Any, **named: Any) -> Use:
    return lambda model: model.classify(*given or (images(DATA),), **named)


def fit(labels: Any, **named: Any) -> Use:
    return lambda model: model.fit_constants(images(DATA), labels, **named)


def fitted(named: dict[str, Any], **asked: Any) -> Use:
    return lambda model: model.classify(
        images(DATA), model.fit_constants(images(FIT), attributes(FIT), **named), **asked
    )


BAD: list[tuple[str, Use, str]] = [
    ("none", classify(), r"the model: got energies of images alone .*, expected"),
    ("none", fit([0] * 26), r"the model: got energies of images alone"),
    ("class", classify(level=6), "argument level: got 6, expected 0 to 5"),
    ("class", classify(num_draws=0), "argument num_draws: got 0"),
    ("class", classify(batch_size=0), "argument batch_size: got 0"),
    ("class", classify(seed=-1), "argument seed: got -1"),
    ("class", classify([1]), "images: got list"),
    ("class", classify(known={"ant": True}), "argument known: got ant, expected none"),
    ("class", classify(constants=3), "constants: got int, expected what fit_constants"),
    ("class", fit([0] * 25), r"labels: got torch.int64 of shape \(25,\)"),
    ("class", fit([3] * 26), "labels: got numbers from 3 to 3"),
    ("class", fit([0] * 26), "labels: got no image that is class bee"),
    ("attributes", classify(known={"dog": True}), "known: got dog, expected some"),
    ("attributes", classify(known={"ant": 2}), "argument known, ant: got numbers from 2 to 2"),
    ("attributes", classify(known={"ant": 0.5}), "argument known, ant: got torch.float32 of"),
    ("attributes", classify(known={"ant": [True]}), r"argument known, ant: got torch.bool of shape \(1"),
    ("attributes", fit([0] * 26), r"labels: got torch.int64 of shape \(26,"),
    (
        "attributes",
        fitted({}, known={"ant": 1}),
        "of ant, bee, cow, expected those of bee, cow with ant known",
    ),
    ("attributes", fitted({"level": 2}, level=3), "level: got 3, expected none, or 2, that of the constants"),
]


@pytest.mark.parametrize(("kind", "use", "message"), BAD)
def test_what_it_cannot_use_is_refused(folder: Path, kind: str, use: Use, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        use(drl_dist.load(folder / kind))
    assert "\n" not in str(error.value)


def test_energies_too_sharp_for_densities_are_warned_of(folder: Path) -> None:
    with pytest.warns(UserWarning, match="too sharp to be densities"):
        drl_dist.load(folder / "class").classify(images(range(1)))
