"""Shards of any folder of images, with all its subfolders: the middle square of each, in the order of their paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets_prep._build import PictureOptions, build
from datasets_prep._source import Encoded, Item, centre_square, digest_of, found_in, require_source
from drl_dist.cli import door, parse_options
from drl_dist.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
NEEDS = "a folder with images (" + ", ".join(SUFFIXES) + ")"


@dataclass(frozen=True, kw_only=True)
class Options(PictureOptions):
    """Options of a folder of images."""

    source: str = ""
    """Folder of the images; subfolders are searched."""
    name: str = "images"
    """What the data set shall be called."""
    split: str = "train"
    """What this part of it shall be called."""
    channels: Literal[1, 3] = 3
    """1 makes the images grey, 3 makes them RGB."""


@dataclass(frozen=True)
class FolderPart:
    """A run of image files."""

    folder: Path
    names: tuple[str, ...]

    def items(self) -> Iterator[Item]:
        """Its images in order."""
        for name in self.names:
            yield Item(name, lambda name=name: _load(self.folder / name))


class ImageFolder:
    """All image files below a folder."""

    def __init__(self, folder: Path, name: str, split: str, channels: int) -> None:
        self.name, self.split, self.channels, self._folder = name, split, channels, folder
        for what, value in (("--name", name), ("--split", split)):
            if not re.fullmatch(r"[A-Za-z0-9_]{1,60}", value):
                raise UserError(
                    what, got=repr(value), expected="letters, digits and underscores", remedy="choose another name"
                )
        if not folder.is_dir():
            raise UserError("--source", got=found_in(folder), expected=NEEDS, remedy="give the folder")
        paths = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if not paths:
            raise UserError(
                f"source {folder}", got=found_in(folder), expected=NEEDS, remedy="give the folder of the images"
            )
        self._paths = tuple(paths)
        self.digest = digest_of(
            f"{path} {(folder / path).stat().st_size}".encode("utf-8", "surrogateescape") for path in paths
        )

    def __len__(self) -> int:
        return len(self._paths)

    def part(self, start: int, stop: int) -> FolderPart:
        """Images `start` to `stop`."""
        return FolderPart(self._folder, self._paths[start:stop])


def _load(path: Path) -> Encoded:
    return Encoded(path.read_bytes(), centre_square)


def main() -> int:
    """The command."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    folder = require_source(options.source, NEEDS)
    return build(ImageFolder(folder, options.name, options.split, options.channels), options)


if __name__ == "__main__":
    door(main)
