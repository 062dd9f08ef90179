"""The benchmark of attributes: what it takes images for, and what the training never shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import attributes
from benchmarks.attributes import (
    ASKED,
    GUIDANCES,
    NAMES,
    PAIRS,
    WAYS,
    holds,
    ink_of,
    measure,
    parts,
    table,
    table_of_answers,
    truth_of,
    write_part,
)
from drl_dist.common.errors import UserError
from drl_dist.data.index import open_index
from drl_dist.data.subset import labels_of
from drl_dist.evaluation.features import FeatureNetwork


def test_what_digits_show() -> None:
    dark, bright = torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.full((5, 1, 8, 8), 255, dtype=torch.uint8)
    classes = torch.tensor([0, 3, 5, 8, 9])
    even, loop, big = [1, 0, 0, 1, 0], [1, 0, 0, 1, 1], [0, 0, 1, 1, 1]
    for images, bold in ((dark, 0), (bright, 1)):
        assert truth_of(images, classes).long().T.tolist() == [even, loop, big, [bold] * 5]
    assert ink_of(bright).tolist() == [64 * 255] * 5


def test_what_was_asked_for() -> None:
    truth = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 1]]).bool()
    assert holds(truth, "Even").tolist() == [True, False, True]
    assert holds(truth, "not Even & Bold").tolist() == [False, True, False]
    assert holds(truth, "Loop & not Bold").tolist() == [True, False, False]


def test_the_training_never_shows_the_pair_that_is_asked_for(tmp_path: Path) -> None:
    found = parts()
    images, truth = found["train"]
    assert not bool(holds(truth, "Loop & Bold").any())
    kept, known = found["test"]
    assert (len(kept), len(found["fit"][0])) == (360, 360)
    assert bool(holds(known, "Loop & Bold").any())
    for name in NAMES:
        assert 0.3 < float(holds(known, name).double().mean()) < 0.7
    write_part(tmp_path, "train", images[:50].numpy(), truth[:50].numpy())
    index = open_index(str(tmp_path))
    assert index.attributes == NAMES
    assert labels_of(index, 50, "attributes").tolist() == (2 * truth[:50].long() - 1).tolist()


class _Drawn:
    """In place of a model: as many bright images as are to be counted, and what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def sample(self, count: int, **asked: Any) -> torch.Tensor:
        self.asked.append(asked)
        images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
        images[: count // 4] = 255
        return images


def test_every_request_is_asked_in_every_way_and_counted() -> None:
    def eights(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.flatten(1).double(), torch.eye(10)[torch.full((len(images),), 8)]

    judge = FeatureNetwork("eights", "eights", 1, torch.device("cpu"), eights)
    model: Any = _Drawn()
    shares, panels = measure(model, judge, 16, 3)
    ways = [f"{way}, w = {w:g}" for way in WAYS for w in GUIDANCES]
    assert shares["Even"] == dict.fromkeys(ways, 1.0)
    assert shares["Loop & Bold"] == dict.fromkeys(ways, 0.25)
    assert shares["Big & not Bold"] == dict.fromkeys(ways, 0.75)
    assert shares["not Loop"] == dict.fromkeys(ways, 0.0)
    assert [panel.title for panel in panels] == ["one label, w = 1", "sum of energies, w = 1"]
    assert panels[0].row_names == (*ASKED, *PAIRS)
    assert model.asked[0] == {"seed": 3, "batch_size": 16, "guidance": 0.0, "labels": "Even"}
    assert model.asked[-1] == {"seed": 3, "batch_size": 16, "guidance": 2.0, "compose": "Loop & Bold"}
    truth = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    assert "| Even | 0.50 | 1.00 | 1.00 |" in table({"Even": shares["Even"]}, truth)


def test_attributes_that_were_given_are_not_scored() -> None:
    scores = {name: {"accuracy": 0.9, "most_frequent": 0.6} for name in NAMES}
    whole = {"per_label": scores, "mean_accuracy": 0.9, "ece": 0.05}
    part = {"per_label": {"Bold": scores["Bold"]}, "mean_accuracy": 0.8, "ece": 0.01}
    assert table_of_answers({"image": whole, "image, Even": part}).splitlines()[2:] == [
        "| image | 0.90 | 0.90 | 0.90 | 0.90 | 0.900 | 0.050 |",
        "| image, Even |  |  |  | 0.90 | 0.800 | 0.010 |",
        "| the more frequent answer | 0.60 | 0.60 | 0.60 | 0.60 |  |  |",
    ]


def test_too_few_images_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["attributes", "--out", str(tmp_path / "out"), "--images", "3"])
    with pytest.raises(UserError, match="--images: got 3, expected at least 16"):
        attributes.main()
    assert not (tmp_path / "out").exists()
