"""Shards of any folder of images, with all its subfolders: the middle square of each, in the order of their paths."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets_prep._build import PictureOptions, build
from datasets_prep._files import current_stamp, file_item
from datasets_prep._listing import Listing, counted, list_images, picture_formats, printable
from datasets_prep._source import Encoded, Item, SourceDefaults, centre_square, digest_of, found_in, require_source
from drl_dist.common.errors import UserError
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.options import parse_options

NEEDS = "a folder with images (.jpg, .png, .webp, .avif, .bmp, .gif, .tif and others that Pillow reads)"


@dataclass(frozen=True, kw_only=True)
class Options(PictureOptions):
    """Options of a folder of images."""

    source: str = ""
    """Folder of the images; subfolders are searched."""
    name: str = "images"
    """Name of the data set."""
    split: str = "train"
    """Name of this part of the data set."""
    channels: Literal[1, 3] = 3
    """1 makes the images grey, 3 makes them RGB."""


@dataclass(frozen=True)
class FolderPart:
    """A run of image files, with their sizes when they were listed."""

    folder: Path
    files: tuple[tuple[str, int], ...]

    def items(self) -> Iterator[Item]:
        """The images in order."""
        for name, size in self.files:
            yield file_item(name, self.folder / name, size, _load)


class ImageFolder(SourceDefaults):
    """The image files below a folder.

    Raises:
        UserError: the names are invalid, or there is no image.
    """

    def __init__(self, folder: Path, name: str, split: str, channels: int) -> None:
        self.name, self.split, self.channels, self._folder = name, split, channels, folder
        for what, value in (("--name", name), ("--split", split)):
            if not re.fullmatch(r"[A-Za-z0-9_]{1,60}", value):
                raise UserError(
                    what, got=repr(value), expected="letters, digits and underscores", remedy="choose another name"
                )
        if not folder.is_dir():
            raise UserError("--source", got=found_in(folder), expected=NEEDS, remedy="give the folder")
        now, self._earlier = list_images(folder)
        if not now.sizes:
            kinds = counted(now.left_out)
            raise UserError(
                f"source {printable(str(folder))}",
                got=f"no usable image, but {kinds}" if kinds else found_in(folder),
                expected=NEEDS,
                remedy="give the folder of the images",
            )
        self._choose(now)

    def _choose(self, listing: Listing) -> None:
        self.left_out, self._files = listing.left_out, tuple(listing.sizes.items())
        self.digest = digest_of(f"{path} {size}".encode("utf-8", "surrogateescape") for path, size in self._files)

    def __len__(self) -> int:
        return len(self._files)

    def part(self, start: int, stop: int) -> FolderPart:
        """Images `start` to `stop`."""
        return FolderPart(self._folder, self._files[start:stop])

    def stamps(self, start: int, stop: int) -> bytes:
        """Stamps of the files."""
        return b"".join(current_stamp(self._folder / name) for name, _ in self._files[start:stop])

    def as_earlier(self) -> ImageFolder | None:
        """The same with fewer kinds of files, but with hidden files and those in folders of programs."""
        if not self._earlier.sizes or dict(self._files) == self._earlier.sizes:
            return None
        other = copy.copy(self)
        other._choose(self._earlier)
        return other


def _load(data: bytes) -> Encoded:
    return Encoded(data, centre_square, picture_formats())


def main() -> int:
    """Run the command; returns its exit status."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    folder = require_source(options.source, NEEDS)
    return build(ImageFolder(folder, options.name, options.split, options.channels), options)


if __name__ == "__main__":
    entry_point(main)
