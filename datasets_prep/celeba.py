"""Shards of CelebA's aligned faces (img_align_celeba as zip or folder) by the official partition file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from datasets_prep._options import PictureOptions
from drl_dist.common.imports import no_collection
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Options(PictureOptions):
    """Options of CelebA."""

    source: str = ""
    """img_align_celeba.zip, the folder img_align_celeba, or the folder that holds one of them."""
    partition: str = ""
    """list_eval_partition.txt or .csv; by default the one beside the images."""
    attributes: str = ""
    """list_attr_celeba.txt or .csv; by default the one beside the images, and without one they have no attributes."""
    split: Literal["train", "val", "test"] = "train"
    """Part of the official partition."""


def main() -> int:
    """Run the command; returns its exit status."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    with no_collection():
        from datasets_prep.sources.celeba import prepare

    return prepare(options)


if __name__ == "__main__":
    entry_point(main)
