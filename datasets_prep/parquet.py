"""Shards of images in tables: Parquet files, or a folder that Hugging Face's `datasets` wrote, row by row."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from datasets_prep._options import OwnImageOptions
from drl_dist.common.imports import no_collection
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Options(OwnImageOptions):
    """Options of images in tables."""

    source: str = ""
    """Folder of .parquet or .arrow files (subfolders are searched), one file, or a pattern in quotation marks."""
    image_column: str = "image"
    """Column of the encoded images: binary, or a struct with the field bytes."""
    label_column: str = ""
    """Column of the classes, whole numbers or texts; by default label if there is one, none for no labels."""


def main() -> int:
    """Run the command; returns its exit status."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    with no_collection():
        from datasets_prep.sources.parquet import prepare

    return prepare(options)


if __name__ == "__main__":
    entry_point(main)
