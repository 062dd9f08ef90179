"""The Triton code that torch's compiler writes for an H100, and the machine code that Triton makes of it, without one.

Triton must be installed, the one that torch's build for CUDA asks for; the build without CUDA will do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from torch._inductor.graph import GraphLowering
from torch.utils import _triton

from benchmarks.roofline.fused import graphs
from drl_dist.common.errors import UserError

CAPABILITY = 90
"""Compute capability of an H100, tenfold."""
_WARP = 32
_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)", re.DOTALL)


def check_triton() -> None:
    """Return if Triton is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("triton") is None:
        raise UserError(
            "option --kernels",
            got="no package triton",
            expected="the one that torch's build for CUDA asks for",
            remedy="install it beside torch, in an environment of its own (docs/performance.md)",
        )


def written(work: Callable[[Callable[..., Any]], object]) -> list[str]:
    """The code of each graph, of its gradient behind it; `work` as of `benchmarks.roofline.fused.fused`."""
    with _driver():
        return graphs(work, _code)


def kernels_in(code: str) -> dict[str, str]:
    """The Triton kernels in the code of a graph: the module that defines each, by the kernel's name."""
    return dict(_KERNEL.findall(code))


def machine_code(path: Path) -> bytes:
    """An ELF image of the kernel in a module of `kernels_in`, in the first configuration that the compiler would try.

    Args:
        path: the module, named as the kernel.
    """
    from torch._inductor.runtime import triton_helpers

    triton: Any = import_module("triton")
    made: list[Any] = []
    compile_kernel = triton.compile

    def kept(*arguments: Any, **options: Any) -> Any:
        made.append(compile_kernel(*arguments, **options))
        return made[-1]

    with (
        _driver(),
        mock.patch.object(triton_helpers, "set_driver_to_gpu", lambda: None),
        mock.patch.object(triton, "compile", kept),
    ):
        kernel = getattr(_imported(path), path.stem)
        kernel._precompile_config(kernel.configs[0])
    (binary,) = made
    return binary.asm["cubin"]


def _code(graph: GraphLowering) -> str:
    code: Any = graph.codegen()[0]
    return code.value


@contextmanager
def _driver() -> Iterator[None]:
    """Triton finds the driver of an H100, of which it is asked what to write code for."""
    target: Any = import_module("triton.backends.compiler").GPUTarget("cuda", CAPABILITY, _WARP)
    driver: Any = import_module("triton.runtime.driver").driver
    hopper = SimpleNamespace(get_current_target=lambda: target)
    caches: list[Any] = [_triton.triton_backend, _triton.triton_hash_with_backend]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(driver, "_active", hopper))
        for cache in caches:
            cache.cache_clear()
            stack.callback(cache.cache_clear)
        yield


def _imported(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # Triton looks for the source of its functions there.
    with mock.patch.dict(sys.modules, {path.stem: module}):
        spec.loader.exec_module(module)
    return module
