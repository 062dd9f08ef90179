"""Options that data sets share; importing them takes no library that a source needs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
"""Where Debian's dataset-fashion-mnist puts the files of Fashion-MNIST."""
Category = Literal[
    "church_outdoor",
    "bedroom",
    "bridge",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
    "airplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining_table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted_plant",
    "sheep",
    "sofa",
    "train",
    "tv-monitor",
]
"""The scenes and objects of LSUN."""
DEFAULT_CATEGORY: Category = "church_outdoor"
Crop = Literal["center", "top", "none", "pad"]
"""What becomes of images that are not square; see `OwnImageOptions`."""


@dataclass(frozen=True, kw_only=True)
class PrepOptions:
    """Options of every data set's command."""

    out: str = ""
    """Folder to write the shards to: a path, file://, gs:// or s3://."""
    resolution: int = 64
    """Height and width of the images, in pixels."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Number of parallel processes that make shards."""
    shard_size: int = 2048
    """Images per shard."""


@dataclass(frozen=True, kw_only=True)
class PictureOptions(PrepOptions):
    """Further options for data sets of encoded pictures."""

    background: str = "white"
    """Colour behind transparent pixels: a name, #rrggbb or r,g,b."""
    value_range: tuple[float, float] | None = None
    """The values of black and white in grey pictures of more than 8 bits, e.g. 0 4095; by default the range given by
    their files, else that of 16 bits."""


@dataclass(frozen=True, kw_only=True)
class OwnImageOptions(PictureOptions):
    """Options of images that are no published data set."""

    source: str = ""
    """Where the images are."""
    name: str = "images"
    """Name of the data set."""
    split: str = "train"
    """Name of this part of the data set; or a share such as 0.9, which goes to OUT/train, and the rest to OUT/test:
    the content of an image decides, so that images added later move none, and copies stay together."""
    channels: Literal[1, 3] = 3
    """1 makes the images grey, 3 makes them RGB."""
    crop: Crop = "center"
    """What becomes of images that are not square. center: their middle; top: the upper end of upright ones, such as
    portraits, and the middle of others; pad: the whole image, with --background beside it; none: the whole image,
    stretched."""
    min_side: int = 0
    """Leave out images whose shorter side has fewer pixels; smaller ones than --resolution are enlarged."""
