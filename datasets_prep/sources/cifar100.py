"""Shards of CIFAR-100 from its *binary* archive (cifar-100-binary.tar.gz), which can be read without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datasets_prep._build import build
from datasets_prep._cifar import CifarSource, Layout, read_members
from datasets_prep._own import report_classes
from datasets_prep._source import require_source
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError

if TYPE_CHECKING:
    from datasets_prep.cifar100 import Options

CLASSES = {"coarse": 20, "fine": 100}
"""Of each kind of label, in the order of the bytes of an image."""
NEEDS = (
    "cifar-100-binary.tar.gz (the binary version, not the Python one), or a folder with its train.bin, test.bin, "
    "fine_label_names.txt and coarse_label_names.txt"
)


def open_cifar100(path: Path, split: str, labels: Literal["fine", "coarse"]) -> CifarSource:
    """One split of the data set in an archive or a folder.

    Args:
        path: the archive or the folder.
        split: train or test.
        labels: the kind that counts.

    Raises:
        UserError: a file is missing or damaged.
    """
    layout = Layout("cifar-100-binary", (f"{split}.bin",), tuple(CLASSES.values()), NEEDS)
    names = _names(path, layout, labels)
    return CifarSource("cifar100", path, layout, split, label=list(CLASSES).index(labels), classes=names)


def _names(path: Path, layout: Layout, labels: str) -> tuple[str, ...]:
    """The names of the classes, which the archive has one a line."""
    member = f"{labels}_label_names.txt"
    data = read_members(path, layout, (member,))[member]
    names = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    if len(names) != CLASSES[labels] or len(set(names)) != len(names) or not all(map(str.isprintable, names)):
        raise UserError(
            f"{member} in {path}",
            got=f"{counted(len(names), 'line')}, {len(set(names))} of them different",
            expected=f"the names of {CLASSES[labels]} classes, one a line",
            remedy="download it again",
        )
    return tuple(names)


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    source = open_cifar100(require_source(options.source, NEEDS), options.split, options.labels)
    report_classes(source.classes)
    return build(source, options)
