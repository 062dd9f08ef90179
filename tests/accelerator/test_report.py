"""The report of a run, and the section of docs/performance.md that follows from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accelerator import page, pictures
from benchmarks.accelerator.record import append
from benchmarks.accelerator.report import write_report
from drl_dist.common.errors import UserError
from tests.support import ROOT

GPU = {"what": "gpu", "name": "A GPU", "memory_gib": 80.0, "multiprocessors": 132, "is_slice": False}


def part(folder: Path, name: str, *rows: dict[str, Any], status: str | None = "done", message: str = "") -> None:
    append(folder, name, "begin", until=0.0)
    for row in rows:
        append(folder, name, "row", **row)
    if status is not None:
        append(folder, name, "end", status=status, message=message, seconds=3.4)


def a_run(folder: Path, *, gpu: bool = True) -> None:
    machine = [{"what": "libraries", "torch": "2.13.0"}, {"what": "processor", "usable_cores": 8, "model": "A CPU"}]
    part(folder, "machine", *machine, *([GPU, {"what": "driver", "driver_version": "580.1"}] if gpu else []))
    way = {"network": "unet", "precision": "tf32", "way": "graph"}
    part(
        folder,
        "equality",
        {**way, "what": "f", "error": 1e-4, "tolerance": 1e-3, "passed": True},
        {**way, "what": "gradient", "error": float("nan"), "tolerance": 1e-3, "passed": False},
        {"network": "unet", "way": "compiled", "failed": "RuntimeError: no compiler"},
    )
    case = {
        "case": "lsun_church64:t6",
        "batch": 64,
        "precision": "tf32",
        "way": "eager",
        "alike": ["lsun_bedroom64:t6"],
    }
    part(
        folder,
        "throughput",
        {"what": "matrix peak", "precision": "tf32", "tflops": 400.0},
        {"case": "lsun_church64:t6", "precision": "tf32", "note": "128 images do not fit"},
        {**case, "what": "gradient", "seconds": 0.5, "tflops": 100.0, "share_of_peak": 0.25},
        {**case, "what": "bare convolutions, contiguous", "seconds": 0.7},
        {**case, "what": "chain", "skipped": "it would take about 90 s"},
    )
    sizes = {"case": "digits:t6", "batch": 32, "precision": "float32"}
    part(
        folder,
        "memory",
        {**sizes, "what": "chain", "estimated": 100 * 2**20, "real": 90 * 2**20, "ratio": 0.9},
        {**sizes, "what": "update", "estimated": 100 * 2**20, "real": 104 * 2**20, "ratio": 1.04},
        {**sizes, "what": "reserved", "real": 200 * 2**20},
    )
    traced = {"case": "digits:t6", "way": "graph", "batch": 32, "precision": "float32"}
    part(
        folder,
        "gaps",
        {**traced, "what": "trace", "file": "trace-digits.json.gz"},
        {**traced, "what": "kernels", "kernels": 1000, "idle_share": 0.07, "largest_gap_us": 40.5, "busy_ms": 12.0},
        {**traced, "what": "kernel", "name": "a" * 200, "ms": 1.5, "count": 12},
        status="out of time",
        message="its time was over",
    )
    fed = {"what": "church", "batch": 64, "precision": "tf32", "steps": 9, "images_per_second": 1234.5}
    part(
        folder,
        "pipeline",
        {"what": "loader alone", "images_per_second": 5000.0},
        {**fed, "waiting_share": 0.0042, "passed": True},
    )
    part(
        folder,
        "training",
        {"what": "data", "name": "digits", "width": 128, "batch": 128, "steps": 900, "precision": "tf32", "images": 9},
        {"what": "step", "step": 9, "loss": 3.0, "grad_norm": 2.0, "noise_error": 0.5, "images_per_second": 7.0},
        {"what": "step", "step": 18, "loss": 2.5, "grad_norm": 2.0, "log_density_gap": 0.5, "images_per_second": 7.0},
        status=None,
    )


def test_a_report_says_everything_in_tables(tmp_path: Path) -> None:
    a_run(tmp_path)
    text = write_report(tmp_path).read_text()
    for line in (
        "A GPU, 80 GiB, 132 multiprocessors, driver 580.1, 8 cores of A CPU, torch 2.13.0, ",
        "| Launch gaps | out of time: its time was over | 3 |",
        "| Training | cut short | 0 |",
        "| unet | tf32 | graph | 1.0e-04 | nan **too large** | – | – | – | – |",
        "1 of 2 are beyond their tolerance",
        "- unet, compiled: failed: RuntimeError: no compiler",
        "TFLOP/s of a large matrix product: tf32 400.",
        "| lsun_church64, t6; lsun_bedroom64, t6 | 64 | tf32 | eager | – | 100 | 25% | – | – | – | – | – |",
        "| lsun_church64, t6 | tf32 | 0.5 | – | 0.7 |",
        "- lsun_church64:t6, tf32: 128 images do not fit",
        "- lsun_church64:t6, tf32, eager, chain: skipped: it would take about 90 s",
        "| digits, t6 | 32 | float32 | 100 MiB / 90 MiB | 100 MiB / 104 MiB | 200 MiB |",
        "The real one is at most 10.0% less than estimated.",
        "| digits, t6 | 32 | graph | 1000 | 12 | 7% | 40.5 |",
        f"`{'a' * 90}…` | 12 | 1.5 |",
        "The loader alone gives 5000 images/s.",
        "| church | 64 | tf32 | 9 | 1234 | 0.42% |",
        "digits, for want of Fashion-MNIST: a U-Net of width 128, 18 of 900 steps of 128 images, loss 2.5 at the end",
        "![Loss and gradient over the steps](curve.png)",
    ):
        assert line in text, line
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"]["training"]["status"] == "cut short"
    assert report["parts"]["equality"]["rows"][1]["error"] == "nan"
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_samples_are_shown_beside_the_data(tmp_path: Path) -> None:
    images = np.zeros((4, 1, 8, 8), np.uint8)
    for name in ("samples.npy", "images.npy"):
        np.save(tmp_path / name, images)
    assert pictures.draw(tmp_path, [], "about") == ["![Samples beside images of the data](samples.png)"]
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_numbers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(pictures, "_curve", missing)
    (said,) = pictures.draw(tmp_path, [{"step": 1}], "about")
    assert "no package matplotlib" in said and "results.jsonl" in said


def test_a_folder_without_results_has_an_empty_report(tmp_path: Path) -> None:
    assert "an unknown machine" in write_report(tmp_path).read_text()


def test_the_section_of_the_page_follows_from_the_report_that_is_kept() -> None:
    text = (ROOT / "docs/performance.md").read_text()
    assert page.with_section(text, page.section(ROOT / "docs")) == text
    assert "`make gpu`" in text


def test_a_run_is_taken_into_the_page_and_nothing_else_changes(tmp_path: Path) -> None:
    docs, run = tmp_path / "docs", tmp_path / "run"
    docs.mkdir()
    run.mkdir()
    shutil.copyfile(ROOT / "docs/performance.md", docs / "performance.md")
    before = (docs / "performance.md").read_text()
    a_run(run)
    write_report(run)
    page.take(run, docs)
    after = (docs / "performance.md").read_text()
    assert "### Rates" in after and "](images/gpu/curve.png)" in after and page.NONE_YET not in after
    assert (docs / "images/gpu/curve.png").is_file() and (docs / "images/gpu/report.json").is_file()
    start, end = (before.partition("## On a GPU")[0], "## Data\n")
    assert after.startswith(start) and after.partition(end)[2] == before.partition(end)[2]
    # Once more, with another run: no rest of the one before.
    page.take(run, docs)
    assert (docs / "performance.md").read_text() == after
    (docs / "images/gpu/report.json").unlink()
    assert page.with_section(after, page.section(docs)) == page.with_section(before, page.NONE_YET)


def test_a_run_without_a_gpu_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without report.json, expected the folder of a run"):
        page.take(tmp_path, tmp_path)
    a_run(tmp_path, gpu=False)
    write_report(tmp_path)
    with pytest.raises(UserError, match="got a run without a GPU, expected one on a GPU"):
        page.take(tmp_path, tmp_path)
    assert not (tmp_path / "images").exists()
