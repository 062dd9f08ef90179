"""The machine and its libraries."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.accelerator.work import Work, precisions
from benchmarks.step import machine

_ASKED = "driver_version,mig.mode.current,power.limit,clocks.max.sm,clocks.current.sm,temperature.gpu,ecc.mode.current"
_LIBRARIES = ("numpy", "triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas")


def run(work: Work) -> None:
    """Tell what the figures of this run were measured on."""
    work.tell(what="processor", **_processor())
    work.tell(what="libraries", **_libraries())
    if work.device.type == "cuda":
        work.tell(what="gpu", **_gpu(work.device))
        work.tell(what="driver", **_driver())
    work.tell(what="precisions", names=precisions(work.device))


def _processor() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "model": models[0] if models else platform.processor() or platform.machine(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": os.getloadavg()[0],
        "torch_device": machine(torch.device("cpu")),
    }


def _libraries() -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
    }
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpu(device: torch.device) -> dict[str, Any]:
    properties, (free, total) = torch.cuda.get_device_properties(device), torch.cuda.mem_get_info(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(total / 2**30, 2),
        "free_gib": round(free / 2**30, 2),
        # A slice has fewer multiprocessors, and less memory, than its name promises.
        "is_slice": "MIG" in properties.name or os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG"),
        "visible_devices": torch.cuda.device_count(),
    }


def _driver() -> dict[str, Any]:
    """What nvidia-smi says, or why it says nothing; without it, the kernel module's version."""
    version = Path("/proc/driver/nvidia/version")
    kernel = version.read_text().splitlines()[0] if version.is_file() else "unknown"
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"kernel_module": kernel, "nvidia_smi": "not installed"}
    command = [program, f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return {"kernel_module": kernel, "nvidia_smi": "no answer in 20 s"}
    if said.returncode:
        return {"kernel_module": kernel, "nvidia_smi": said.stdout.strip() or said.stderr.strip()}
    values = [value.strip() for value in said.stdout.splitlines()[0].split(",")]
    return {"kernel_module": kernel, **dict(zip(_ASKED.replace(".", "_").split(","), values, strict=True))}
