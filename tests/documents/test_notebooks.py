"""The notebooks run from top to bottom, and are kept as they are before they run."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.forked import real_python
from tests.support import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
FEW_STEPS = {"num_steps": 6}
"""In place of what the cell with the tag `parameters` assigns, one a line."""


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"digits", "own_network"}


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_is_kept_of_a_run(path: Path) -> None:
    for cell in read(path).cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_written_as_editors_write_it(path: Path) -> None:
    """So that saving an unchanged notebook changes nothing."""
    assert nbformat.writes(read(path), indent=1) + "\n" == path.read_text()


def shortened(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = [line.partition(" = ")[0] for line in cell.source.splitlines()]
    assert names == list(FEW_STEPS), "the parameters are those that this test knows"
    cell.source = "\n".join(f"{name} = {value}" for name, value in FEW_STEPS.items())
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fresh interpreter: where matplotlib draws is decided when it is imported.
    monkeypatch.setattr(sys, "executable", real_python())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # What a notebook has where no program before it has chosen another.
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # Its settings and its history belong to the user.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "work"
    folder.mkdir()
    notebook = shortened(read(path))
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(folder)}}).execute()
    texts = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(output.output_type == "display_data" for output in texts), "nothing was drawn"
