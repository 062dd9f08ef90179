"""What docs/library.md says can be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import drl_dist
from tests.documents.pages import blocks, pages
from tests.helpers.labelled import write_model
from tests.support import ROOT

OPENING, CLASSIFYING, TRAINING = (
    body for _, language, body in blocks(pages()["docs/library.md"]) if language == "python"
)


def test_its_opening_samples(model: drl_dist.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drl_dist, "load", {"models:/digits_unet@latest": model}.__getitem__)
    names: dict[str, torch.Tensor] = {}
    exec(OPENING, names)
    assert torch.equal(names["images"], model.sample(16))


@pytest.mark.filterwarnings("ignore:the energies were trained by short")
def test_its_classifying_classifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "runs/labelled", "class")
    generator = np.random.default_rng(0)
    for name, count in (("known", 9), ("others", 5)):
        np.save(f"{name}.npy", generator.integers(0, 256, (count, 8, 8), dtype=np.uint8))
    np.save("labels.npy", np.arange(9) % 3)
    names: dict[str, torch.Tensor] = {}
    exec(CLASSIFYING, names)
    assert names["probabilities"].shape == (5, 3)


def test_its_training_trains_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (9, 4, 4), dtype=np.uint8))
    assert "num_steps=200" in TRAINING
    exec(TRAINING.replace("num_steps=200", "num_steps=2"), {})
    assert drl_dist.load("model").step == 2


def test_its_table_lists_every_method() -> None:
    text = (ROOT / "docs/library.md").read_text()
    used = [name for name in dir(drl_dist.Model) if callable(getattr(drl_dist.Model, name)) and name[0] != "_"]
    assert used and [name for name in used if f"odel.{name}(" not in text] == []
