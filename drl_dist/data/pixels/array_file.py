"""Images in one ``.npy`` file, for training without shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.common.validation import local_of


def read_array_file(place: str) -> tuple[Tensor, str]:
    """All images of a file, and its fingerprint.

    Args:
        place: path or file:// URL of a file that ``numpy.save`` wrote.

    Returns:
        (N, C, H, W) uint8, C = 1 or 3; SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    path = local_of(place, f"data {place}")
    expected = "images that numpy.save wrote, uint8 (N, C, H, W) with 1 or 3 channels"
    remedy = "correct --data, or write the file again"
    try:
        # Without pickles: nothing of the file runs.
        array = np.load(path, allow_pickle=False)
        with Path(path).open("rb") as file:
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, EOFError) as error:
        got = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:120]
        raise UserError(f"data {place}", got=got, expected=expected, remedy=remedy) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError(f"data {place}", got="several arrays", expected=expected, remedy=remedy)
    if array.dtype != np.uint8 or array.ndim != 4 or not len(array) or array.shape[1] not in (1, 3):
        raise UserError(f"data {place}", got=f"{array.dtype} {array.shape}", expected=expected, remedy=remedy)
    return torch.from_numpy(array), fingerprint
