"""Shards of any folder of images, with all its subfolders, in the order of their paths; subfolders are classes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from datasets_prep._attributes import report_attributes
from datasets_prep._files import UNKNOWN, content_of, current_stamp, file_item, read_file
from datasets_prep._folder_labels import Labels, attributes_of, labels_of
from datasets_prep._listing import Listing, counted_kinds, list_images, picture_formats, printable
from datasets_prep._own import Cut, build_own, check_names, cut_of, report_classes
from datasets_prep._source import Encoded, Item, SourceDefaults, digest_of, found_in, require_source
from drl_dist.common.errors import UserError
from drl_dist.common.progress import progress
from drl_dist.data.index import CLASSES

if TYPE_CHECKING:
    from datasets_prep.folder import Options

NEEDS = "a folder with images (.jpg, .png, .webp, .avif, .bmp, .gif, .tif and others that Pillow reads)"
READERS = 8
"""Threads that read files to split them by content."""


@dataclass(frozen=True)
class FolderPart:
    """A run of image files, with their sizes when they were listed, their labels and their attributes."""

    folder: Path
    files: tuple[tuple[str, int, int | None, tuple[int, ...] | None], ...]
    cut: Cut

    def items(self) -> Iterator[Item]:
        """The images in order."""
        load = partial(_load, cut=self.cut)
        for name, size, label, attributes in self.files:
            yield file_item(name, self.folder / name, size, load, label=label, attributes=attributes)


class ImageFolder(SourceDefaults):
    """The image files below a folder.

    Args:
        folder: the folder.
        name: of the data set.
        split: name of this part of it.
        channels: 1 or 3.
        cut: makes the images square.
        labels: where their classes come from, see `Options`.
        label_column: of the metadata.
        attribute_columns: of the metadata, with commas between.

    Raises:
        UserError: there is no image, some have no class where all must have one, or the attributes cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        split: str,
        channels: int,
        cut: Cut | None = None,
        *,
        labels: Literal["auto", "folders", "metadata", "none"] = "none",
        label_column: str = "label",
        attribute_columns: str = "",
    ) -> None:
        self.name, self.split, self.channels, self._folder = name, split, channels, folder
        self._cut, self._share = cut or Cut(), None
        if not folder.is_dir():
            raise UserError("--source", got=found_in(folder), expected=NEEDS, remedy="give the folder")
        now, self._earlier = list_images(folder)
        if not now.sizes:
            kinds = counted_kinds(now.left_out)
            raise UserError(
                f"source {printable(str(folder))}",
                got=f"no usable image, but {kinds}" if kinds else found_in(folder),
                expected=NEEDS,
                remedy="give the folder of the images",
            )
        self._labels = labels_of(folder, list(now.sizes), labels, label_column, has_attributes=bool(attribute_columns))
        self._attributes = attributes_of(folder, list(now.sizes), attribute_columns)
        self._choose(now)

    def _choose(self, listing: Listing) -> None:
        self.left_out, self._files = listing.left_out, tuple(listing.sizes.items())
        self.digest = digest_of(f"{path} {size}".encode("utf-8", "surrogateescape") for path, size in self._files)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels; empty without labels."""
        return self._labels.names

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes; empty without any."""
        return self._attributes.names

    @property
    def parameters(self) -> dict[str, Any]:
        """See `datasets_prep._source.Source.parameters`."""
        classes: dict[str, Any] = {CLASSES: list(self.classes)} if self.classes else {}
        labels: dict[str, Any] = {"labels": self._labels.digest} if self._labels.digest else {}
        labels |= self._attributes.parameters
        return self._cut.parameters | classes | labels | ({} if self._share is None else {"share": self._share})

    def __len__(self) -> int:
        return len(self._files)

    def part(self, start: int, stop: int) -> FolderPart:
        """Images `start` to `stop`."""
        label, attributes = self._labels.of.get, self._attributes.of.get
        files = tuple((name, size, label(name), attributes(name)) for name, size in self._files[start:stop])
        return FolderPart(self._folder, files, self._cut)

    def stamps(self, start: int, stop: int) -> bytes:
        """Stamps of the files."""
        return b"".join(current_stamp(self._folder / name) for name, _ in self._files[start:stop])

    def contents(self) -> Iterator[bytes]:
        """See `datasets_prep._own.Splittable`; reads every file."""
        step = 64 * READERS
        with (
            progress("reading images to split them", len(self), 0, "images") as advance,
            ThreadPoolExecutor(READERS) as threads,
        ):
            for start in range(0, len(self), step):
                chunk = self._files[start : start + step]
                yield from threads.map(lambda entry: _content(self._folder / entry[0]), chunk)
                advance(len(chunk))

    def chosen(self, places: NDArray[np.int64], split: str, share: float) -> ImageFolder:
        """See `datasets_prep._own.Splittable`."""
        other = copy.copy(self)
        other.split, other._share = split, share
        other._choose(Listing(dict(self._files[place] for place in places.tolist()), self.left_out))
        return other

    def as_earlier(self) -> ImageFolder | None:
        """The same without labels; then with fewer kinds of files, but with hidden files and those in folders of
        programs. Neither where an option is given that earlier versions did not have.
        """
        if self._share is not None or self._cut.parameters or self._attributes.names:
            return None
        other = copy.copy(self)
        if self.classes:
            other._labels, other.lacks = Labels(), "labels"
            return other
        if not self._earlier.sizes or dict(self._files) == self._earlier.sizes:
            return None
        other._choose(self._earlier)
        return other


def _load(data: bytes, cut: Cut) -> Encoded:
    return Encoded(data, cut, picture_formats())


def _content(path: Path) -> bytes:
    try:
        return content_of(read_file(path)[0])
    except (OSError, ValueError):
        # It is listed as unreadable when its shard is made.
        return UNKNOWN


def prepare(options: Options) -> int:
    """Make the shards; the exit status."""
    folder = require_source(options.source, NEEDS)
    share, cut = check_names(options), cut_of(options)
    source = ImageFolder(
        folder,
        options.name,
        options.split,
        options.channels,
        cut,
        labels=options.labels,
        label_column=options.label_column,
        attribute_columns=options.attribute_columns,
    )
    report_classes(source.classes)
    report_attributes(source.attributes)
    return build_own(source, options, share)
