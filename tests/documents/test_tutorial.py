"""What the tutorial writes and runs in Python does what its page says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import drl_dist
from drl_dist.config.own_data import experiment_for
from tests.documents.pages import blocks
from tests.support import ROOT

BLOCKS = blocks((ROOT / "docs" / "tutorial.md").read_text())


@pytest.mark.slow
def test_photographs_are_drawn_and_a_model_completes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = [found[1] for _, _, body in BLOCKS if (found := re.search(r"<<'EOF'\n(.*)^EOF$", body, re.M | re.S))]
    exec(compile(script, "photographs.py", "exec"), {})
    photos = {path.name: path for path in Path("var/tutorial/photos").glob("*/*.jpg")}
    sizes = {Image.open(path).size for path in photos.values()}
    assert (
        len(photos) == 400
        and len(sizes) > 300
        and {path.parent.name for path in photos.values()}
        == {
            "evening",
            "noon",
        }
    )
    train_a_model()
    (body,) = [body for _, language, body in BLOCKS if language == "python"]
    names: dict[str, object] = {}
    exec(compile(body, "tutorial.md", "exec"), names)
    pixels, completed = np.asarray(names["pixels"]), np.asarray(names["completed"])
    assert (completed[:, :, :8] == pixels[:, :, :8]).all() and (completed[:, :, 8:] != pixels[:, :, 8:]).any()
    assert drl_dist.load("var/tutorial/model").step == 2


def train_a_model() -> None:
    """A small one of the page's size, where the page has its run."""
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), np.uint8)
    experiment = experiment_for(resolution=16, channels=3, num_images=357)
    experiment = replace(experiment, model=replace(experiment.model, width=8))
    model = drl_dist.train(images, experiment, num_steps=2, show_progress=False)
    Path("var/tutorial/runs").mkdir(parents=True)
    model.save("var/tutorial/runs/first")
