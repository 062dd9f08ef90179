"""The parts of a run on an accelerator, as far as a CPU can tell."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.accelerator import cases as cases_module
from benchmarks.accelerator import equality, memory, throughput, training, worker
from benchmarks.accelerator import work as work_module
from benchmarks.accelerator.cases import cases
from benchmarks.accelerator.parts import UNUSABLE, Clock
from benchmarks.accelerator.pipeline import Waits
from benchmarks.accelerator.record import read
from benchmarks.accelerator.trace import busiest, idle_share, kernels_of, largest_gap, read_trace
from benchmarks.accelerator.work import (
    UnusableError,
    Work,
    arithmetic,
    at_largest_batch,
    engine,
    precisions,
    timing,
    trying,
)
from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.tree import EngineConfig

CPU = torch.device("cpu")


def work(folder: Path, name: str = "throughput", seconds: float = 300) -> Work:
    return Work(name, folder, CPU, Clock(time.monotonic() + seconds))


def rows(folder: Path, name: str = "throughput") -> list[dict[str, Any]]:
    return read(folder)[name].rows


def test_a_batch_is_halved_until_it_fits() -> None:
    tried: list[int] = []
    told: list[str] = []

    def run(batch: int) -> None:
        tried.append(batch)
        if batch > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if batch > 30:
            # As where memory was short during a capture, whose end then fails.
            try:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            finally:
                raise RuntimeError("capture failed")

    at_largest_batch(100, run, CPU, told.append)
    assert tried == [100, 50, 25] and told == ["100 images do not fit", "50 images do not fit"]
    with pytest.raises(ZeroDivisionError):
        at_largest_batch(100, lambda batch: batch // 0, CPU, told.append)
    with pytest.raises(RuntimeError, match="something else"):
        at_largest_batch(100, lambda batch: _raise(RuntimeError("something else")), CPU, told.append)
    # Where one image is too many, other cases may be smaller.
    at_largest_batch(3, lambda batch: _raise(torch.OutOfMemoryError("out of memory")), CPU, told.append)
    assert told[2:] == ["3 images do not fit", "1 image does not fit"]


def _raise(error: BaseException) -> None:
    raise error


def test_what_fails_is_a_row_but_short_memory_is_not(tmp_path: Path) -> None:
    with trying(work(tmp_path), case="a"):
        raise ValueError("no\nsuch kernel")
    assert rows(tmp_path) == [{"case": "a", "failed": "ValueError: no such kernel"}]
    with pytest.raises(torch.OutOfMemoryError), trying(work(tmp_path), case="a"):
        raise torch.OutOfMemoryError("out of memory")
    assert len(rows(tmp_path)) == 1


def test_arithmetic_is_put_back() -> None:
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    assert before == [False, True]
    for precision, expected in (("tf32", True), ("float32", False), ("bfloat16", False)):
        with arithmetic(precision):
            assert [switch.allow_tf32 for switch in switches] == [expected, expected]
            # As whatever reads the older switches meanwhile.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                pass
    assert [switch.allow_tf32 for switch in switches] == before


def test_ways_are_configs_of_the_engine() -> None:
    assert engine("tf32", "eager") == EngineConfig(compile="never", cuda_graph=False)
    assert engine("bfloat16", "graph") == EngineConfig(precision="bfloat16", compile="never", cuda_graph=True)
    assert engine("float32", "compiled, graph") == EngineConfig(compile="always", cuda_graph=True)
    assert precisions(CPU) == ["float32", "bfloat16"]


def test_a_gpu_without_bfloat16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # An emulated one is there, as on a T4.
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precisions(torch.device("cuda")) == ["float32"]
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precisions(torch.device("cuda")) == ["bfloat16", "tf32", "float32"]


def test_work_that_is_not_warm_is_run_once_more() -> None:
    for is_warm, runs in ((False, 4), (True, 3)):
        made: list[int] = []
        assert timing(lambda made=made: made.append(1), CPU, at_most=100, rounds=3, is_warm=is_warm).runs == 3
        assert len(made) == runs
    slow = timing(lambda: time.sleep(0.02), CPU, at_most=0.01, is_warm=True)
    assert slow.runs == 1 and slow.fastest == slow.seconds == slow.slowest >= 0.02


def test_every_preset_is_measured_once_in_both_settings() -> None:
    found = cases(is_small=False)
    names = [name for case in found for name in (case.name, *case.alike)]
    assert sorted(names) == sorted(f"{name}:{setting}" for name in TABLE_6 for setting in ("t6", "unet"))
    church = next(case for case in found if case.name == "lsun_church64:t6")
    assert church.alike == ("lsun_bedroom64:t6",) and church.batch == 128 and church.of(4).train.batch_size == 4
    assert found[0].name == "cifar10:t6" and found[0].num_blocks == 32


def test_agreement_sees_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fifty steps take their time, and are compared alike.
    monkeypatch.setattr(equality, "MEASURES", {what: equality.MEASURES[what] for what in ("f", "gradient", "chain")})
    found = equality.reference("wide_resnet")
    right = dict(equality.MEASURES)
    wrong = {"gradient": lambda y: y * 1.001, "chain": lambda y: y * float("nan")}
    equality.compare(work(tmp_path, "equality"), found, "float32", "eager")
    for what, change in wrong.items():
        measure = right[what]
        monkeypatch.setitem(equality.MEASURES, what, lambda *given, m=measure, c=change: c(m(*given)))
    equality.compare(work(tmp_path, "equality"), found, "float32", "eager")
    passed = [(row["what"], row["passed"]) for row in rows(tmp_path, "equality")]
    assert passed[:3] == [("f", True), ("gradient", True), ("chain", True)]
    assert passed[3:] == [("f", True), ("gradient", False), ("chain", False)]


def test_agreement_is_not_begun_without_time(tmp_path: Path) -> None:
    found = equality.Reference("none", preset("digits"), {}, {"f": torch.ones(1)}, {})
    equality.compare(work(tmp_path, "equality", seconds=0), found, "float32", "eager")
    assert [row["skipped"] for row in rows(tmp_path, "equality")] == ["no time left"]


@pytest.mark.slow
def test_rates_go_the_way_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tiny, and without the compiler, which would take a minute.
    small = cases(is_small=True)
    monkeypatch.setattr(Work, "is_small", False)
    monkeypatch.setattr(throughput, "cases", lambda is_small: small)
    monkeypatch.setattr(throughput, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr(throughput, "precisions", lambda device: ["bfloat16", "float32"])
    monkeypatch.setattr(throughput, "engine", lambda precision, way: engine(precision, "eager"))
    monkeypatch.setattr(throughput, "_COMPILED_BLOCK_SECONDS", 1e-3)
    throughput.run(work(tmp_path))
    found = rows(tmp_path)
    assert not [row for row in found if "failed" in row or "skipped" in row]
    measured = {(row["case"], row["precision"], row["way"], row["what"]) for row in found if "seconds" in row}
    for case in ("digits:t6", "digits:unet"):
        for way in ("eager", "graph", "compiled", "compiled, graph"):
            assert {(case, "bfloat16", way, what) for what in ("gradient", "chain", "update")} <= measured
        assert (case, "bfloat16", "eager", "forward") in measured
        assert (case, "bfloat16", "eager", "bare convolutions, contiguous") in measured
        assert (case, "float32", "graph", "update") in measured
    assert ("digits:unet", "bfloat16", "compiled", "score matching") in measured
    flop = {row["what"]: row["flop"] for row in found if row.get("way") == "eager" and row["case"] == "digits:t6"}
    # A gradient is a forward and as much again; the chain of this size has two.
    assert flop["gradient"] == pytest.approx(2 * flop["forward"], rel=0.02) and flop["chain"] == 2 * flop["gradient"]
    rate = next(row for row in found if row["what"] == "gradient")
    assert rate["tflops"] == pytest.approx(rate["flop"] / rate["seconds"] / 1e12)
    assert rate["share_of_peak"] == pytest.approx(rate["tflops"])


def test_what_takes_too_long_to_compile_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def measure(work: Work, case: cases_module.Case, *_: object) -> None:
        compiled.append(case.name)
        now[0] += 50.0 * case.num_blocks

    now = [1000.0]
    monkeypatch.setattr("benchmarks.accelerator.parts.time.monotonic", lambda: now[0])
    monkeypatch.setattr(throughput, "_measure", measure)
    found = cases(is_small=False)
    throughput._compile_all(Work("throughput", tmp_path, CPU, Clock(1500.0)), found, "bfloat16", 1e12, {})
    # The first took 50 s for each of its 8 blocks, so that no other fits.
    assert compiled == ["cifar10:t6, N = 2"] and len(rows(tmp_path)) == len(throughput.compiled_cases(found)) - 1
    assert all("compiling would take about" in row["skipped"] for row in rows(tmp_path))


def test_few_blocks_are_compiled_first_and_no_size_twice() -> None:
    found = cases(is_small=False)
    names = [case.name for case in throughput.compiled_cases(found)]
    assert names[:3] == ["cifar10:t6, N = 2", "cifar10:unet", "lsun_church128:t6"]
    # In the paper's sizes only these have more; those of 64 and of 128 pixels differ in nothing else.
    assert names[-3:] == ["celeba64:t6", "lsun_bedroom128:t6", "cifar10:t6"]
    assert "celeba64:t6, N = 2" in names and not {"lsun_church64:t6", "lsun_bedroom128:t6, N = 2"} & set(names)


def test_what_an_earlier_process_tried_is_not_tried_again(tmp_path: Path) -> None:
    known = [{"case": "a", "way": "graph", "batch": 4, "alike": ["b"]}, {"case": "b", "way": "graph", "failed": "x"}]
    again = Work("throughput", tmp_path, CPU, Clock(time.monotonic() + 9), known)
    assert again.was_tried(case="a", way="graph") and not again.was_tried(case="a", way="eager")
    assert not again.keeps_failing("graph")
    again.tell(case="c", way="graph", failed="x")
    # Rows of its own are no reason to leave the rest of a case out; two failures of a way are.
    assert not again.was_tried(case="c", way="graph")
    assert again.keeps_failing("graph") and not again.keeps_failing("eager")
    throughput._measure(again, cases(is_small=True)[0], "float32", ["graph"], 1e12, {})
    assert rows(tmp_path)[-1]["skipped"] == "this way has failed before"
    done = Work("gaps", tmp_path, CPU, again.clock, [{"case": "digits:t6", "precision": "float32", "way": "eager"}])
    throughput._measure(done, cases(is_small=True)[0], "float32", ["eager"], 1e12, {})
    assert "gaps" not in read(tmp_path)


def test_a_lost_device_ends_the_process_but_not_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(work_module, "is_usable", lambda device: False)
    # Memory that was short within a capture leaves it broken, and is no reason for a smaller batch.
    for error in (RuntimeError("illegal memory access"), torch.OutOfMemoryError("out of memory")):
        with pytest.raises(UnusableError), trying(work(tmp_path), case="a"):
            raise error
    assert [row["failed"].split(":")[0] for row in rows(tmp_path)] == ["RuntimeError", "OutOfMemoryError"]
    monkeypatch.setattr(work_module, "is_usable", lambda device: True)
    with pytest.raises(UnusableError), trying(work(tmp_path), case="b"):
        try:
            raise torch.OutOfMemoryError("out of memory")
        finally:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
    assert [row["failed"].split(":")[0] for row in rows(tmp_path)][2:] == ["AcceleratorError"]
    monkeypatch.setattr(work_module, "is_usable", lambda device: False)
    ran: list[int] = []

    def run(work: Work) -> None:
        ran.append(len(work.rows))
        with trying(work, case="a"):
            raise RuntimeError("illegal memory access")

    monkeypatch.setattr(memory, "run", run)
    words = ["--out", str(tmp_path), "--device", "cpu", "--parts", "memory,gaps", "--until", str(time.monotonic() + 60)]
    assert [worker.main(words) for _ in range(2)] == [UNUSABLE] * 2
    assert ran == [0, 1] and list(read(tmp_path)) == ["throughput", "memory"]
    assert read(tmp_path)["memory"].status == "running" and "another one goes on" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_compared_with_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cases", lambda is_small: cases(is_small=is_small)[:1])
    memory.run(work(tmp_path, "memory"))
    found = rows(tmp_path, "memory")
    assert [row["what"] for row in found] == ["chain", "update"]
    # So small a network that what is not counted shows.
    assert all(row["ratio"] == row["real"] / row["estimated"] == pytest.approx(1, abs=0.25) for row in found)


def test_a_trace_tells_when_no_kernel_runs(tmp_path: Path) -> None:
    def event(name: str, start: float, length: float, cat: str = "kernel") -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": length, "pid": 0, "tid": 7}

    events = [
        event("cudaLaunchKernel", 0, 900, "cuda_runtime"),
        event("conv", 100, 50),
        event("copy", 140, 20, "gpu_memcpy"),
        event("conv", 200, 60),
        event("add", 210, 10),
        event("add", 250, 20),
        {"ph": "f", "cat": "kernel", "name": "an arrow", "ts": 1.0},
    ]
    path = tmp_path / "trace.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": events}, file)
    kernels = kernels_of(read_trace(path))
    assert [kernel.name for kernel in kernels] == ["conv", "copy", "conv", "add", "add"]
    # From 100 to 270, none from 160 to 200.
    assert idle_share(kernels) == pytest.approx(40 / 170) and largest_gap(kernels) == 40
    assert busiest(kernels, 2) == [("conv", 110.0, 2), ("add", 30.0, 2)]
    assert idle_share(kernels[:1]) == largest_gap(kernels[:1]) == 0.0


def test_waits_leave_the_first_steps_out() -> None:
    watch = Waits()
    for step in range(5):
        report: Any = type(
            "Report", (), {"wait_seconds": 5.0 if step < 3 else 0.1, "seconds": 10.0 if step < 3 else 1.0}
        )
        watch.on_step(report, None)  # type: ignore[arg-type]
    assert watch.share == pytest.approx(0.1) and watch.mean_seconds == pytest.approx(1.0)


def test_training_takes_fashion_mnist_or_else_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(2 * 28 * 28, dtype=np.int64).astype(np.uint8).reshape(2, 28, 28)
    source = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(source, "wb") as file:
        file.write(b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (2, 28, 28)) + pixels.tobytes())
    monkeypatch.setattr(training, "SOURCE", source)
    name, images = training.load_images()
    assert name == "fashion_mnist" and images.shape == (2, 1, 32, 32) and images.dtype == torch.uint8
    assert (images[:, 0, 2:30, 2:30].numpy() == pixels).all() and not images[:, :, :2].any()
    source.unlink()
    name, images = training.load_images()
    assert name == "digits" and images.shape == (1797, 1, 8, 8) and int(images.max()) == 255


def test_a_wider_network_learns_at_a_lower_rate() -> None:
    experiment = training._experiment("fashion_mnist", is_small=False)
    assert experiment.model.width == 128 and experiment.model.network == "unet"
    assert experiment.optim.learning_rate == pytest.approx(2e-3 * 16 / 128)
