"""What the README says can be done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drl_dist.jobs.demo import RUN_NAME, DemoOptions
from tests.support import write_tiny_checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_opens_with_the_two_commands() -> None:
    opening = README[: README.index("## Use it")]
    assert "make demo" in opening and "make test" in opening


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    # The run that `make demo` leaves there.
    assert f'"{DemoOptions.folder}/runs/{RUN_NAME}"' in block
    write_tiny_checkpoint(
        tmp_path / DemoOptions.folder / "runs" / RUN_NAME / "checkpoint_000000003", width=4, num_chain_steps=2
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["images"].shape == (16, 1, 8, 8)  # type: ignore[attr-defined]


DOCUMENTS = ["README.md", "SECURITY.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_points_at_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (folder / target).exists(), target
    for path in re.findall(r"(?<![\w/])((?:jobs|tests|benchmarks|drl_dist|datasets_prep)/[\w/]+\.py)", text):
        assert (ROOT / path).exists(), path
    for found in re.findall(r"python -m ((?:datasets_prep|benchmarks|drl_dist)[\w.]+)", text):
        module = found.rstrip(".")
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"make {name}"
