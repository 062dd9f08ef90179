"""Shards of CIFAR-100 from its *binary* archive (cifar-100-binary.tar.gz), which can be read without pickle."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from datasets_prep._options import PrepOptions
from drl_dist.common.imports import no_collection
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Options(PrepOptions):
    """Options of CIFAR-100."""

    source: str = ""
    """cifar-100-binary.tar.gz, or the folder that it unpacks to."""
    split: Literal["train", "test"] = "train"
    """50,000 images to train on, or 10,000 to test with."""
    labels: Literal["fine", "coarse"] = "fine"
    """Classes of the images: 100 such as maple_tree, or the 20 kinds that these are of, such as trees."""
    resolution: int = 32
    """Height and width of the images, in pixels."""


def main() -> int:
    """Run the command; returns its exit status."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    with no_collection():
        from datasets_prep.sources.cifar100 import prepare

    return prepare(options)


if __name__ == "__main__":
    entry_point(main)
