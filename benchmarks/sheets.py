"""Score the images of contact sheets, which is what is left of models that are gone, and of sampling jobs.

    python -m benchmarks.sheets --data fashion_mnist --out FOLDER SHEET.png SAMPLES ...

SAMPLES is the folder of a sampling job, all of whose images are scored. A sheet is a grid.png of the sampling job or a
samples.png of training, without real images beside it. Images are scored as those of benchmarks.quality are, by the
same features, beside as many real ones that neither the features nor the reference have seen. FID of few images is far
too large, and comparable only between as many. --out keeps the features' network. Needs the extras `evaluation` and
`prep`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from benchmarks.quality.data import check_source, load_data
from benchmarks.quality.features import feature_network
from benchmarks.quality.record import FEATURES
from benchmarks.quality.scores import Scorer
from benchmarks.quality.settings import DATA
from datasets_prep._options import DEBIAN_FOLDER
from drl_dist.common.errors import UserError
from drl_dist.common.images import enlargement
from drl_dist.common.program import entry_point, stop_on_signals
from drl_dist.common.validation import local_of, refuse_broken
from drl_dist.data.decode import read_images
from drl_dist.data.index import open_index
from drl_dist.jobs.common.output.sheet import images_in

_PADDING = 2
_HEAD = ("of", "images", "FID", "recognised", "smallest class", "largest class")


def cut(sheet: np.ndarray, resolution: int, what: str) -> Tensor:
    """The images of a sheet as `drl_dist.common.images.grid` makes it, of its first channel.

    Args:
        sheet: (height, width, 3) uint8.
        resolution: height and width of the images, in pixels.
        what: named in errors.

    Returns:
        (N, 1, H, W) uint8, row by row.

    Raises:
        UserError: sheets of such images have other sizes.
    """
    factor = enlargement(resolution)
    cell = resolution * factor + _PADDING
    rows, columns = ((length - _PADDING) // cell for length in sheet.shape[:2])
    if sheet.shape[:2] != (rows * cell + _PADDING, columns * cell + _PADDING):
        raise UserError(
            what,
            got=f"{sheet.shape[1]} x {sheet.shape[0]} pixels",
            expected=f"a sheet of images of {resolution} pixels: a multiple of {cell} and {_PADDING} more each way",
            remedy="give a sheet without real images beside it",
        )
    cells = torch.from_numpy(sheet[_PADDING:, _PADDING:, 0].copy()).unfold(0, cell - _PADDING, cell)
    cells = cells.unfold(1, cell - _PADDING, cell)
    images = cells[..., ::factor, ::factor]
    if not torch.equal(images.repeat_interleave(factor, 2).repeat_interleave(factor, 3), cells):
        raise UserError(
            what,
            got="images of more pixels",
            expected=f"images of {resolution} pixels, each shown {factor} times in both directions",
            remedy="give --data the images that the sheet is of",
        )
    images = images.reshape(rows * columns, 1, resolution, resolution)
    # The last row may have empty places, which are white.
    return images[(images < 255).flatten(1).any(1)]


def images_of(name: str, resolution: int) -> Tensor:
    """All images of a sheet, or of the shards in a folder, uint8 (N, 1, H, W).

    Raises:
        UserError: there is neither, or its images have another size.
    """
    path = local_of(name, "SHEET.png")
    if path.is_dir():
        index = open_index(str(path))
        if (index.resolution, index.channels) != (resolution, 1):
            raise UserError(
                str(path),
                got=f"images of {index.resolution} pixels in {index.channels} channels",
                expected=f"images of {resolution} pixels in one channel",
                remedy="give --data the images that the samples are like",
            )
        return read_images(index, index.num_samples)
    if not path.is_file():
        raise UserError(
            "SHEET.png", got=str(path), expected="a file, or a folder of shards", remedy="name a contact sheet"
        )
    try:
        with Image.open(path) as sheet:
            known = images_in(sheet)
            if known is None:
                return cut(np.asarray(sheet.convert("RGB")), resolution, str(path))
            first = next(iter(known.values()))
            if tuple(first.shape[1:]) != (1, resolution, resolution):
                raise UserError(
                    str(path),
                    got=f"images of shape {tuple(first.shape[1:])}",
                    expected=f"{(1, resolution, resolution)}",
                    remedy="give --data the images that the sheet is of",
                )
            return first
    except UnidentifiedImageError:
        raise UserError("SHEET.png", got=str(path), expected="an image", remedy="name a contact sheet") from None


def table(scores: Sequence[tuple[str, int, dict[str, Any]]]) -> str:
    """A line for each sheet or folder: its name, its number of images and their scores."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for name, count, score in scores:
        shares = score["class_shares"]
        numbers = (score["fid"], score["recognised"], min(shares), max(shares))
        lines.append((name, str(count), *(f"{number:.3g}" for number in numbers)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(words: Sequence[str]) -> int:
    """Parse, then work; the exit status.

    Raises:
        UserError: a sheet cannot be used.
        Stopped: a signal ended it.
    """
    parser = argparse.ArgumentParser(
        prog="benchmarks.sheets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sheets", nargs="+", metavar="SHEET.png", help="or a folder of generated shards")
    parser.add_argument("--data", default="digits", help=f"the images: {' or '.join(DATA)}")
    parser.add_argument("--out", required=True, help="folder of the features' network")
    parser.add_argument("--source", default=DEBIAN_FOLDER, help="folder of Fashion-MNIST's files")
    given = parser.parse_args(words)
    refuse_broken([("--data", given.data, f"one of {', '.join(DATA)}", given.data in DATA)])
    stop_on_signals()
    check_source(given.data, given.source)
    data = load_data(given.data, given.source)
    resolution = data.train.shape[-1]
    images = {name: images_of(name, resolution) for name in given.sheets}
    folder = local_of(given.out, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    network, _ = feature_network(data, folder / FEATURES)
    fewest = min(len(data.held_out) // 2, *(len(some) for some in images.values()))
    images = {"held-out images": data.held_out[-fewest:], **images}
    scorer = Scorer.of(network, dataclasses.replace(data, held_out=data.held_out[:-fewest]))
    print(table([(name, len(some), scorer.score(some)) for name, some in images.items()]), end="")
    return 0


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
