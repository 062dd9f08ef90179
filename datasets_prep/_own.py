"""What sources of anybody's images share: crops, classes, and a split by content."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from datasets_prep._build import build, check_options
from datasets_prep._files import UNKNOWN
from datasets_prep._left_out import TooSmallError
from datasets_prep._listing import printable
from datasets_prep._options import Crop, OwnImageOptions
from datasets_prep._pixels import pixel_rules
from datasets_prep._resume import is_begun
from datasets_prep._source import Source, centre_square
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.config.own_data import check_resolution
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.jobs.common.output.job_folder import refuse_foreign

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}")
SPLIT = re.compile(r"[A-Za-z0-9_]{1,60}")
SPLITS = ("train", "test")
"""Parts of a split by content, and their folders."""
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Cut:
    """Makes a decoded picture square; can be sent to another process."""

    crop: Crop = "center"
    min_side: int = 0
    background: tuple[int, int, int] = (255, 255, 255)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The square, or with `crop` none the image as it is, which is then resized to one.

        Raises:
            TooSmallError: the image is smaller than `min_side`.
        """
        if min(image.size) < self.min_side:
            raise TooSmallError(f"{image.width}x{image.height} pixels, less than --min-side {self.min_side}")
        if self.crop == "none" or image.width == image.height:
            return image
        if self.crop == "top" and image.height > image.width:
            return image.crop((0, 0, image.width, image.width))
        if self.crop == "pad":
            side = max(image.size)
            mode = "L" if image.mode == "L" else "RGB"
            colour = ImageColor.getcolor("rgb({}, {}, {})".format(*self.background), mode)
            square = Image.new(mode, (side, side), colour)
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            return square
        return centre_square(image)

    @property
    def parameters(self) -> dict[str, object]:
        """What distinguishes outputs: nothing for the defaults, as in outputs of earlier versions."""
        crop: dict[str, object] = {} if self.crop == "center" else {"crop": self.crop}
        return crop | ({"min_side": self.min_side} if self.min_side else {})


def cut_of(options: OwnImageOptions) -> Cut:
    """The crop that a command's options ask for.

    Raises:
        UserError: an option is invalid.
    """
    rules: list[tuple[str, object, str, bool]] = [
        ("--crop", options.crop, "one of " + ", ".join(get_args(Crop)), options.crop in get_args(Crop)),
        ("--min-side", options.min_side, "0 or more", options.min_side >= 0),
    ]
    for what, got, expected, holds in rules:
        if not holds:
            raise UserError(what, got=got, expected=expected, remedy="correct it")
    return Cut(options.crop, options.min_side, pixel_rules(options).background)


def check_names(options: OwnImageOptions) -> float | None:
    """The share of a split by content; None if `--split` is the name of a part.

    Raises:
        UserError: one of the names is none, or the share is not between 0 and 1.
    """
    if not NAME.fullmatch(options.name):
        raise UserError(
            "--name",
            got=repr(options.name),
            expected="letters, digits, '_' and '-', not beginning with '-'",
            remedy="choose another name",
        )
    if SPLIT.fullmatch(options.split):
        return None
    try:
        share = float(options.split)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UserError(
            "--split",
            got=repr(options.split),
            expected="letters, digits and underscores, or a share between 0 and 1 such as 0.9",
            remedy="choose another name or share",
        )
    return share


class Splittable(Source, Protocol):
    """A source whose images can be told apart by content before any is decoded."""

    def contents(self) -> Iterable[bytes]:
        """A checksum of each image's bytes, 8 bytes, in order; zeros for one that cannot be read."""
        ...

    def chosen(self, places: NDArray[np.int64], split: str, share: float) -> Source:
        """A part of the images, by their increasing places in this source's order."""
        ...


def is_first(content: bytes, share: float) -> bool:
    """Whether an image of this checksum is in the first part of a split; it depends on nothing else."""
    return content == UNKNOWN or int.from_bytes(content, "big") < share * 2**64


def build_own(source: Splittable, options: OwnImageOptions, share: float | None) -> int:
    """Make the shards of a source, or of the two parts of its split; returns the exit status of the command.

    Raises:
        UserError: as `build`, or a part of the split would be empty.
    """
    check_options(source, options)
    try:
        check_resolution(options.resolution)
    except UserError as error:
        print(
            f"Only a network of your own can be trained on what this prepares. {error} (Ctrl-C ends this command.)",
            file=sys.stderr,
        )
    _refuse_out(options, SPLITS if share is not None else ())
    if share is None:
        return build(source, options)
    is_train = np.fromiter((is_first(content, share) for content in source.contents()), bool, len(source))
    parts = dict(zip(SPLITS, (np.flatnonzero(is_train), np.flatnonzero(~is_train)), strict=True))
    for split, places in parts.items():
        if not len(places):
            raise UserError(
                "--split",
                got=f"{options.split} of {counted(len(source), 'image')}, which leaves none for {split}",
                expected="a share with which both parts have images",
                remedy="choose another share, or prepare more images",
            )
    for split, places in parts.items():
        status = build(source.chosen(places, split, share), replace(options, out=joined(options.out, split)))
        if status:
            return status
    return 0


def _refuse_out(options: OwnImageOptions, splits: Sequence[str]) -> None:
    """Return if the output folder is another one than the source, and holds nothing but its parts, or was begun before.

    Raises:
        UserError: it holds something else, or the storage does not answer.
    """
    check_reachable(options.out)
    if any(is_begun(Folder(joined(options.out, split) if split else options.out)) for split in splits or ("",)):
        return
    local = Folder(options.out).local
    if local is not None and local.resolve() == Path(options.source).resolve():
        raise UserError(
            "--out",
            got=f"{options.out}, the folder of --source",
            expected="a folder of its own for the shards",
            remedy="choose another --out",
        )
    # A folder without parts is looked at with what belongs into it.
    if splits:
        refuse_foreign(options.out, (), apart_from=splits)


def class_names(found: Iterable[str], where: str) -> tuple[str, ...]:
    """Names of classes in order: as numbers if all are, else as texts; their places are the labels.

    Args:
        found: the names, any number of times.
        where: what they are, for a message.

    Raises:
        UserError: there are too many to be classes.
    """
    names = set(found)
    if len(names) > MAX_CLASSES:
        raise UserError(
            where, got=f"{len(names)} different ones", expected=f"at most {MAX_CLASSES} classes", remedy="choose others"
        )
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def report_classes(names: Sequence[str]) -> None:
    """Print what the labels are."""
    if names:
        shown = ", ".join(f"{label} {printable(name)}" for label, name in enumerate(names[:8]))
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        print(f"Labels of {counted(len(names), 'class', 'classes')}: {shown}{more}.", file=sys.stderr)
