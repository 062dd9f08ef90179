"""Making torchvision importable beside a torch that its compiled half was not built for.

timm and torch-fidelity import torchvision. Its wheel on PyPI is compiled against torch with CUDA; beside a CPU-only
torch the compiled half does not load, and the import itself then fails, since torchvision describes two operators
(``nms`` and ``qnms``) that nobody has defined: ``operator torchvision::nms does not exist``. None of what is used here
calls them, so it is enough that their names exist.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_DEFINITIONS = {name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")}
# A library's definitions go away with its object.
_kept: list[torch.library.Library] = []


def make_importable() -> None:
    """Call before the first import of timm or torch_fidelity; does nothing where torchvision is in order."""
    if all(hasattr(torch.ops.torchvision, name) for name in _DEFINITIONS):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return  # The import that follows says so.
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
