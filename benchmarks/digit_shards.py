"""Some of the digits as a folder of one shard with its index, as `datasets_prep` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, write_index
from drl_dist.data.shards import Sample, encode_png, pack_shard, shard_name


def write_digits(
    folder: Path,
    split: str,
    images: NDArray[np.uint8],
    labels: Sequence[Mapping[str, Any]],
    made_by: Mapping[str, Any],
) -> None:
    """Write them.

    Args:
        folder: that is made.
        split: its name in the index.
        images: (N, 1, 8, 8).
        labels: what the JSON of each has.
        made_by: names and counts of labels, for the index.
    """
    samples = [
        Sample(place, encode_png(image), dict(label))
        for place, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    data, row = pack_shard(shard_name("digits", split, 0), samples)
    Folder(str(folder)).write(row.name, data)
    write_index(
        ShardIndex(
            url=str(folder),
            name="digits",
            split=split,
            resolution=8,
            channels=1,
            shards=(row,),
            made_by=dict(made_by),
        )
    )
