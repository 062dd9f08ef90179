"""The program of docs/serving.md runs, and its images are those that the page promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import drl_dist
from tests.documents.pages import blocks, pages
from tests.support import write_tiny_checkpoint


def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", width=4, num_chain_steps=2)
    (body,) = [body for _, language, body in blocks(pages()["docs/serving.md"]) if language == "python"]
    assert "var/demo/runs/demo" in body
    names: dict[str, Any] = {}
    exec(body.replace("var/demo/runs/demo", str(checkpoint)), names)
    model = drl_dist.load(checkpoint)
    for image, expected in (
        (names["frame"].image, model.sample(4)[3]),
        (names["image"], model.interpolate(3, 5, 3)[1]),
    ):
        assert int((image.int() - expected.int()).abs().max()) <= 1
