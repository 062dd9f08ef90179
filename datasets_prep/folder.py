"""Shards of any folder of images, with all its subfolders, in the order of their paths; subfolders are classes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from datasets_prep._options import OwnImageOptions
from drl_dist.common.imports import no_collection
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Options(OwnImageOptions):
    """Options of a folder of images."""

    source: str = ""
    """Folder of the images; subfolders are searched."""
    labels: Literal["auto", "folders", "metadata", "none"] = "auto"
    """Classes of the images. folders: names of the subfolders of --source; metadata: the column --label-column of its
    metadata.csv or metadata.jsonl; none: no labels; auto: metadata or folders where all images have one, else none."""
    label_column: str = "label"
    """Column of the metadata that has the class."""
    attribute_columns: str = ""
    """Columns of the metadata, such as smiling,hat, that say what is true of an image: 1, true or yes; 0, -1, false or
    no; empty if unknown."""


def main() -> int:
    """Run the command; returns its exit status."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    with no_collection():
        from datasets_prep.sources.folder import prepare

    return prepare(options)


if __name__ == "__main__":
    entry_point(main)
