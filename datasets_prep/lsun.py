"""Shards of LSUN from its published LMDB (key -> WebP image): the middle square of each photograph, resized."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from datasets_prep._options import DEFAULT_CATEGORY, Category, PictureOptions
from drl_dist.common.imports import no_collection
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Options(PictureOptions):
    """Options of LSUN."""

    source: str = ""
    """Folder <category>_<split>_lmdb, or the folder that holds it; of an object, also <category> or <category>_lmdb."""
    category: Category = DEFAULT_CATEGORY
    """Which of the ten scenes or twenty objects; the test split has none."""
    split: Literal["train", "val", "test"] = "train"
    """Part of the data set; objects have "train" alone, and "test" is of all scenes."""


def main() -> int:
    """Run the command; returns its exit status."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    with no_collection():
        from datasets_prep.sources.lsun import prepare

    return prepare(options)


if __name__ == "__main__":
    entry_point(main)
