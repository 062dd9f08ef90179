"""What operations move, what the compiler fuses, and the table that follows from both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from benchmarks.presets import experiment_of
from benchmarks.roofline.__main__ import main, sized
from benchmarks.roofline.bound import Machine, bound
from benchmarks.roofline.code import kernels_in
from benchmarks.roofline.fused import fused
from benchmarks.roofline.gradient import eager_operations, fused_kernels
from benchmarks.roofline.operations import operations_of
from drl_dist.common.errors import UserError

X = torch.zeros(2, 4, 8, 8)
"""2 kB."""


@pytest.mark.parametrize(
    ("work", "nbytes"),
    [
        (lambda: X + X, [3 * 2048]),
        # In place: read and written. A number for each channel is repeated, and read once.
        (lambda: X.clone().add_(torch.empty(2, 4).expand(3, 2, 4)[0, :, :, None, None]), [2 * 2048, 0, 2 * 2048 + 32]),
        (lambda: X.flatten(1).mT, [0, 0]),
        (lambda: X.to(torch.bfloat16), [2048 + 1024]),
        (lambda: X.sum((2, 3)), [2048 + 32]),
        (lambda: torch.empty(5).detach(), [0, 0]),
    ],
)
def test_an_operation_moves_what_it_reads_and_writes(work: Callable[[], object], nbytes: list[int]) -> None:
    found = [one for one in operations_of(work) if one.nbytes or "empty" in one.name or "view" in one.name]
    assert [one.nbytes for one in operations_of(work) if one.nbytes] == [size for size in nbytes if size]
    assert all(one.is_view == (one.nbytes == 0) for one in found)


def test_a_convolutions_gradient_reads_the_weight_and_not_the_image() -> None:
    weight = torch.zeros(6, 4, 3, 3)
    y = X.clone().requires_grad_()
    forward, backward = (
        one
        for one in operations_of(lambda: functional.conv2d(y, weight, padding=1).square().sum().backward())
        if one.flop
    )
    image, made, kernel = 2048, 2 * 6 * 64 * 4, weight.nbytes
    assert forward.nbytes == image + kernel + made == backward.nbytes
    assert forward.flop == backward.flop == 2 * 2 * 64 * 6 * 4 * 9


def test_the_bound_is_the_longer_of_both_for_each_part() -> None:
    machine = Machine(flop_per_second=100.0, bytes_per_second=10.0)
    # Two seconds of arithmetic, then one of memory.
    found = bound([(200, 10), (0, 10)], machine)
    assert found.seconds == 3 and found.share(machine) == pytest.approx(2 / 3)


def test_what_is_pointwise_is_one_kernel() -> None:
    with FakeTensorMode():
        x = torch.empty(1000, requires_grad=True)

        def work(compiled: Callable[..., Any]) -> None:
            function: Callable[[Tensor], Tensor] = compiled(lambda at: (at.sin() + 1) * at)
            function(x).sum().backward()

        forward, backward = fused(work)
    assert forward.library is backward.library is None and not forward.is_product
    # x to y; x and the gradient of y to that of x, the latter one number for all.
    assert forward.nbytes == 8000 and 8000 < backward.nbytes <= 12000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits:t6", "digits:unet"])
def test_a_gradient_is_fused(name: str) -> None:
    experiment = sized(experiment_of(name), 4, None)
    operations = [one for one in eager_operations(experiment, "bfloat16") if not one.is_view]
    kernels = fused_kernels(experiment, "bfloat16")
    products = [one for one in operations if one.flop]
    assert len(products) == sum(one.is_product for one in kernels)
    # Each has an image gradient behind it, of as many FLOP, and none has one of its weight.
    half = len(products) // 2
    assert sum(one.flop for one in products[:half]) == sum(one.flop for one in products[half:])
    assert len(kernels) < len(operations)
    # Atomic sums take any order, so that results would differ from run to run.
    assert not any(one.is_atomic for one in kernels)
    if name == "digits:t6":
        rest = sum(one.nbytes for one in kernels if not one.is_product)
        assert rest < sum(one.nbytes for one in operations if not one.flop)


def test_kernels_of_triton_are_written_as_code_and_machine_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="docs/performance.md says how to install it beside a torch without CUDA")
    made = tmp_path / "made"
    assert main(["--presets", "digits:t6", "--batch-size", "4", "--kernels", str(made)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    kernels = fused_kernels(sized(experiment_of("digits:t6"), 4, None), "bfloat16")
    images = sorted(made.rglob("*.cubin"))
    # What is alike in a graph is one kernel.
    assert 0 < len(images) <= len([one for one in kernels if one.library is None])
    assert line.startswith(f"digits:t6: 2 graphs, {len(images)} kernels in Triton and ")
    for image in images:
        assert image.read_bytes()[:4] == b"\x7fELF" and "@triton.jit" in image.with_suffix(".py").read_text()
    assert {path.parent.name for path in images} == {"graph_0", "graph_1"}


def test_kernels_are_found_in_the_code_of_a_graph() -> None:
    code = "a = async_compile.triton('a', '''\nimport triton\n''', device_str='cuda')\nextern_kernels.mm(b, c)\n"
    assert kernels_in(code) == {"a": "\nimport triton\n"} and kernels_in("") == {}


def test_kernels_need_triton_and_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"option --kernels: got .*/mine, expected a new folder"):
        main(["--kernels", str(tmp_path / "mine")])
    monkeypatch.setattr("benchmarks.roofline.code.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"option --kernels: got no package triton"):
        main(["--kernels", str(tmp_path / "new")])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_table_follows_the_numbers_of_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--presets", "digits:t6", "--batch-size", "2", "--without-fusion"]
    assert main([*words, "--tflops", "1e9", "--bandwidth", "1e-6"]) == 0
    assert main([*words, "--tflops", "1e-9", "--bandwidth", "1e6"]) == 0
    header, line, *slow_memory = capsys.readouterr().out.splitlines()
    assert header.count("|") == line.count("|") == slow_memory[0].count("|")
    cells = [row.split(" | ") for row in (slow_memory[0], slow_memory[-1])]
    assert cells[0][:3] == cells[1][:3] and cells[0][0] == "| digits, t6"
    assert [row[4].rpartition(", ")[2] for row in cells] == ["0 %", "100 %"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tflops", "0"], "option --tflops: got 0"),
        (["--bandwidth", "-1"], "option --bandwidth: got -1"),
        (["--batch-size", "0"], "option --batch-size: got 0"),
        (["--presets", "cifar10:t7"], "option --presets: got cifar10:t7"),
    ],
)
def test_what_cannot_be_counted_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        main(words)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr().out == ""
