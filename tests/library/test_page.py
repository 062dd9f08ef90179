"""What docs/library.md says can be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import drl_dist
from tests.documents.pages import blocks, pages
from tests.support import ROOT

OPENING, TRAINING = (body for _, language, body in blocks(pages()["docs/library.md"]) if language == "python")


def test_its_opening_samples(model: drl_dist.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drl_dist, "load", {"models:/digits_unet@latest": model}.__getitem__)
    names: dict[str, torch.Tensor] = {}
    exec(OPENING, names)
    assert torch.equal(names["images"], model.sample(16))


def test_its_training_trains_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.random.default_rng(0).integers(0, 256, (9, 4, 4), dtype=np.uint8))
    assert "num_steps=200" in TRAINING
    exec(TRAINING.replace("num_steps=200", "num_steps=2"), {})
    assert drl_dist.load("model").step == 2


def test_its_table_lists_every_method() -> None:
    text = (ROOT / "docs/library.md").read_text()
    used = [name for name, value in vars(drl_dist.Model).items() if callable(value) and not name.startswith("_")]
    assert used and [name for name in used if f"model.{name}(" not in text] == []
