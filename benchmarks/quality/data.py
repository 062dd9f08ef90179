"""The images: those that are trained on, those that are held out, and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.digit_features import digits
from datasets_prep._source import require_source
from datasets_prep.sources.fashion_mnist import NEEDS, FashionMnist

_HELD_OUT_DIGITS = 360


@dataclass(frozen=True)
class Data:
    """A set of images in two parts."""

    name: str
    train: Tensor
    """(N, C, H, W) uint8."""
    train_labels: Tensor
    """(N,) int64."""
    held_out: Tensor
    """(M, C, H, W) uint8: never trained on, neither by a model nor by the network whose features score it."""
    held_out_labels: Tensor
    """(M,) int64."""


def load_data(name: str, source: str) -> Data:
    """Load the digits, which come with scikit-learn, or Fashion-MNIST from its files.

    Args:
        name: one of `benchmarks.quality.settings.DATA`.
        source: folder of Fashion-MNIST's files.

    Raises:
        UserError: the files are missing or damaged.
    """
    if name == "digits":
        images, labels = digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held_out, train = order[:_HELD_OUT_DIGITS], order[_HELD_OUT_DIGITS:]
        return Data(name, images[train], labels[train], images[held_out], labels[held_out])
    folder = Path(source)
    return Data(name, *_fashion(folder, "train"), *_fashion(folder, "test"))


def check_source(name: str, source: str) -> None:
    """Raise `UserError` if there is nothing to load from."""
    if name == "fashion_mnist":
        require_source(source, NEEDS)


def _fashion(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    source = FashionMnist(folder, split)
    items = list(source.part(0, len(source)).items())
    # Fashion-MNIST's items hold pixels; those of other sources would hold encoded files.
    loaded = [image for item in items if isinstance(image := item.load(), Image.Image)]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in loaded]))
    return pixels[:, None], torch.tensor([item.label for item in items])
