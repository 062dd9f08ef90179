"""A workaround that makes torchvision importable with a torch for which its compiled part was not built.

timm and torch-fidelity import torchvision. Its wheel on PyPI is compiled against torch with CUDA. With a CPU-only torch
the compiled part does not load, and the import then fails, because torchvision refers to two operators (``nms`` and
``qnms``) that are not defined: ``operator torchvision::nms does not exist``. Nothing used here calls them, so defining
their names is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_DEFINITIONS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}
# A library's definitions disappear with its object.
_kept: list[torch.library.Library] = []


def make_importable() -> None:
    """Call before the first import of timm or torch_fidelity; does nothing where torchvision is in order."""
    if all(hasattr(torch.ops.torchvision, name) for name in _DEFINITIONS):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return  # The import that follows raises the error.
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, definition in _DEFINITIONS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(definition)
    _kept.append(library)
