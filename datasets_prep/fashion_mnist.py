"""Shards of Fashion-MNIST from its idx files, such as those of Debian's dataset-fashion-mnist."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from datasets_prep._options import DEBIAN_FOLDER, PrepOptions
from drl_dist.common.imports import no_collection
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Options(PrepOptions):
    """Options of Fashion-MNIST."""

    source: str = DEBIAN_FOLDER
    """Folder with the idx files, compressed with gzip or not."""
    split: Literal["train", "test"] = "train"
    """60,000 images to train on, or 10,000 to test with."""
    resolution: int = 32
    """Height and width of the images, in pixels."""


def main() -> int:
    """Run the command; returns its exit status."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    with no_collection():
        from datasets_prep.sources.fashion_mnist import prepare

    return prepare(options)


if __name__ == "__main__":
    entry_point(main)
