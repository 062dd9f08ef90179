"""Shards of CIFAR-10 from its *binary* archive (cifar-10-binary.tar.gz), which can be read without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datasets_prep._build import build
from datasets_prep._cifar import CifarSource, Layout
from datasets_prep._source import require_source

if TYPE_CHECKING:
    from datasets_prep.cifar10 import Options

MEMBERS = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""As in the archive's batches.meta.txt."""
NEEDS = "cifar-10-binary.tar.gz (the binary version, not the Python one), or a folder with its data_batch_1.bin to 5"


def open_cifar10(path: Path, split: str) -> CifarSource:
    """One split of the data set in an archive or a folder.

    Raises:
        UserError: a file is missing or damaged.
    """
    layout = Layout("cifar-10-batches-bin", MEMBERS[split], (len(CLASSES),), NEEDS)
    return CifarSource("cifar10", path, layout, split, label=0, classes=CLASSES)


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    return build(open_cifar10(require_source(options.source, NEEDS), options.split), options)
