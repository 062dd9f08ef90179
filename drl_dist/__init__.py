"""Energy-based models trained by diffusion recovery likelihood.

    import drl_dist

    model = drl_dist.load("models:/digits_unet@latest")  # or a folder, or a URL
    images = model.sample(16, seed=0)                    # uint8 (16, C, H, W)

`load` finds a trained model wherever it is kept, `train` trains one on images in memory, and `Model` samples, scores,
edits and saves (docs/library.md). Importing this package costs nothing: torch is imported when one of these is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drl_dist.library.load import load as load
    from drl_dist.library.model import Model as Model
    from drl_dist.library.train import train as train

    __version__: str

# Read when torch is imported. Threads that wait for each other would otherwise spin for milliseconds, and where
# something else runs on the same cores, as on laptops, they spin while those that they wait for are not let on. Some
# microseconds keep most of the speed where nothing else runs (`python -m benchmarks.threads`).
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

__all__ = ["Model", "__version__", "load", "train"]

_MODULES = {"Model": "drl_dist.library.model", "load": "drl_dist.library.load", "train": "drl_dist.library.train"}
"""Where each name is defined."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from drl_dist.common.version import installed_version

        value: Any = installed_version()
    elif name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
