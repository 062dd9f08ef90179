"""Images in one ``.npy`` file, for training without shards."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from drl_dist.common.errors import UserError
from drl_dist.common.validation import local_of

if TYPE_CHECKING:
    # Commands look at a file's shape before torch is there.
    from torch import Tensor


def read_array_file(place: str) -> tuple[Tensor, str]:
    """All images of a file, and its fingerprint.

    Args:
        place: path or file:// URL of a file that ``numpy.save`` wrote.

    Returns:
        (N, C, H, W) uint8, C = 1 or 3; SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    import torch

    array = _load(place)
    try:
        with local_of(place, f"data {place}").open("rb") as file:
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _bad(place, error.strerror or error) from error
    return torch.from_numpy(array), fingerprint


def array_shape(place: str) -> tuple[int, int, int, int]:
    """(N, C, H, W) of a file's images, of which only the header is read; arguments and errors as `read_array_file`."""
    num_images, channels, height, width = _load(place, mmap_mode="r").shape
    return num_images, channels, height, width


def _load(place: str, mmap_mode: Literal["r"] | None = None) -> NDArray[np.uint8]:
    path = local_of(place, f"data {place}")
    try:
        # Without pickles: nothing of the file runs.
        array: Any = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        got = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:120]
        raise _bad(place, got) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise _bad(place, "several arrays")
    if array.dtype != np.uint8 or array.ndim != 4 or not len(array) or array.shape[1] not in (1, 3):
        raise _bad(place, f"{array.dtype} {array.shape}")
    return array


def _bad(place: str, got: object) -> UserError:
    return UserError(
        f"data {place}",
        got=got,
        expected="images that numpy.save wrote, uint8 (N, C, H, W) with 1 or 3 channels",
        remedy="correct --data, or write the file again",
    )
