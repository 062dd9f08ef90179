"""Shards of CelebA's aligned faces (img_align_celeba as zip or folder) by the official partition file."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image

from datasets_prep._build import PictureOptions, build
from datasets_prep._source import Encoded, Item, found_in, require_source
from drl_dist.cli import door, parse_options
from drl_dist.errors import UserError

IMAGES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
PARTS = {"train": "0", "val": "1", "test": "2"}
ALIGNED_SIZE = (178, 218)
"""Width and height of an aligned image."""
CROP = (0, 20, 178, 198)
"""Rows 20 to 198: the square that the paper cuts out."""
MAX_FILE_BYTES = 64 * 2**20
NEEDS = f"{IMAGES}.zip or the folder {IMAGES}, or the folder that holds it, with {PARTITION} beside it"


@dataclass(frozen=True, kw_only=True)
class Options(PictureOptions):
    """Options of CelebA."""

    source: str = ""
    """img_align_celeba.zip, the folder img_align_celeba, or the folder that holds one of them."""
    partition: str = ""
    """list_eval_partition.txt; by default the one beside the images."""
    split: Literal["train", "val", "test"] = "train"
    """Part of the official partition."""


@dataclass(frozen=True)
class CelebaPart:
    """A run of images."""

    images: Path
    names: tuple[str, ...]

    def items(self) -> Iterator[Item]:
        """Its images in order."""
        for name in self.names:
            yield Item(name, lambda name=name: _load(self.images, name))


class Celeba:
    """One split of the data set.

    Args:
        images: the zip file or the folder of the images.
        partition: the official partition file.
        split: train, val or test.
    """

    name, channels = "celeba", 3

    def __init__(self, images: Path, partition: Path, split: str) -> None:
        self.split, self._images = split, images
        text = partition.read_bytes()
        entries = [line.split() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
        wrong = next((entry for entry in entries if len(entry) != 2 or entry[1] not in PARTS.values()), None)
        if wrong is not None:
            raise UserError(
                f"partition file {partition}",
                got=f"the line {' '.join(wrong)[:80]!r}",
                expected="lines like '000001.jpg 0'",
                remedy="download it again",
            )
        self._names = tuple(name for name, part in entries if part == PARTS[split])
        held = _held(images)
        if not any(name in held for name in self._names):
            raise UserError(
                f"source {images}",
                got=f"{len(held)} files, none of the {len(self._names)} images that {partition.name} lists for {split}",
                expected=NEEDS,
                remedy="give the matching files",
            )
        self.digest = hashlib.sha256(
            text + "".join(f"\n{name} {held.get(name)}" for name in self._names).encode()
        ).hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def part(self, start: int, stop: int) -> CelebaPart:
        """Images `start` to `stop`."""
        return CelebaPart(self._images, self._names[start:stop])


def find(source: Path, partition: str) -> tuple[Path, Path]:
    """The images and the partition file of a source.

    Raises:
        UserError: one of them is not there.
    """
    images = next((path for path in (source / IMAGES, source / f"{IMAGES}.zip") if path.exists()), source)
    # The zip unpacks to a folder in a folder of the same name with some programs.
    if (images / IMAGES).is_dir():
        images = images / IMAGES
    if images.is_file() and not zipfile.is_zipfile(images):
        raise UserError(
            "--source", got=f"{found_in(images)}, which is no zip archive", expected=NEEDS, remedy="download it again"
        )
    folders = dict.fromkeys((source, images.parent, source.parent))
    candidates = (
        [Path(partition)]
        if partition
        else [path for folder in folders for path in (folder / PARTITION, folder / "Eval" / PARTITION)]
    )
    list_file = next((path for path in candidates if path.is_file()), None)
    if list_file is None:
        raise UserError(
            "--partition",
            got=partition or f"no {PARTITION} beside {images}",
            expected=NEEDS,
            remedy="give the path of CelebA's list_eval_partition.txt",
        )
    return images, list_file


@lru_cache(maxsize=1)
def _archive(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    archive = zipfile.ZipFile(path)
    return archive, {info.filename.rsplit("/", 1)[-1]: info for info in archive.infolist() if not info.is_dir()}


def _held(images: Path) -> dict[str, int]:
    """Size in bytes of every image file by name."""
    if images.is_dir():
        return {path.name: path.stat().st_size for path in images.iterdir() if path.is_file()}
    try:
        return {name: info.file_size for name, info in _archive(images)[1].items()}
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"source {images}", got=f"a damaged archive ({error})", expected=NEEDS, remedy="download it again"
        ) from error


def _load(images: Path, name: str) -> Encoded:
    if images.is_dir():
        data = (images / Path(name).name).read_bytes()
    else:
        archive, infos = _archive(images)
        if name not in infos:
            raise FileNotFoundError(f"{name} is not in the archive")
        if infos[name].file_size > MAX_FILE_BYTES:
            raise ValueError(f"{infos[name].file_size} bytes")
        data = archive.read(infos[name])
    return Encoded(data, _face)


def _face(image: Image.Image) -> Image.Image:
    if image.size != ALIGNED_SIZE:
        raise ValueError(f"{image.width}x{image.height} pixels, not 178x218")
    return image.crop(CROP)


def main() -> int:
    """The command."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    images, partition = find(require_source(options.source, NEEDS), options.partition)
    return build(Celeba(images, partition, options.split), options)


if __name__ == "__main__":
    door(main)
