"""Decoding of samples to pixels: the webdataset library parses the tar, Pillow decodes the PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from webdataset.gopen import gopen_schemes
from webdataset.tariterators import group_by_keys, tar_file_expander

from drl_dist.config.condition import ConditionKind
from drl_dist.data.cache import OpenShard, ShardCache
from drl_dist.data.filesystem import open_filesystem
from drl_dist.data.index import ShardIndex
from drl_dist.data.labels import label_in, names_of
from drl_dist.data.pixels.pictures import PictureError, bits_of_colour, decoding, open_verified
from drl_dist.data.shards import MAX_SAMPLE_ID
from drl_dist.data.substitutes import DamageError

MEMBERS = {"png", "json"}
_MODES = {1: "L", 3: "RGB"}


def read_image(shard: OpenShard, sample: int, index: ShardIndex) -> NDArray[np.uint8]:
    """Pixels uint8 (C, H, W) of one sample of a shard.

    Raises:
        DamageError: the sample is not a single tar sample with an intact PNG of the index's size and channels.
    """
    return _pixels(parse_sample(shard, sample, index.url), shard, sample, index)


def read_labelled(
    shard: OpenShard, sample: int, index: ShardIndex, kind: ConditionKind
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Pixels as `read_image`, and the label, see `drl_dist.data.labels.label_in`.

    Raises:
        DamageError: from either.
    """
    return read_named(shard, sample, index, kind)[1:]


def read_named(
    shard: OpenShard, sample: int, index: ShardIndex, kind: ConditionKind
) -> tuple[str, NDArray[np.uint8], NDArray[Any]]:
    """The name of a sample in its shard, nine digits, and what `read_labelled` reads; errors as there."""
    key, data = _parse(shard, sample, index.url)
    label = label_in(data, kind, len(names_of(index, kind)), place_of(shard, sample, index.url))
    return key, _pixels(data, shard, sample, index), label


def read_label(shard: OpenShard, sample: int, index: ShardIndex, kind: ConditionKind) -> NDArray[Any]:
    """The label of `read_labelled` alone, of which no pixel is decoded; errors as there."""
    members = parse_sample(shard, sample, index.url)
    return label_in(members, kind, len(names_of(index, kind)), place_of(shard, sample, index.url))


def _pixels(data: Mapping[str, bytes], shard: OpenShard, sample: int, index: ShardIndex) -> NDArray[np.uint8]:
    if "png" not in data:
        raise _damaged(shard, sample, index.url, f"members {sorted(data)}", "a png member")
    try:
        with decoding():
            image = open_verified(data["png"], formats=("PNG",))
            transparent, bits = image.has_transparency_data, bits_of_colour(image)
        # Checked after reading only the header, so that nothing larger than the index allows is ever decoded.
        found = (image.size, image.mode)
        wanted = ((index.resolution, index.resolution), _MODES[index.channels])
        if found != wanted:
            raise _damaged(shard, sample, index.url, f"an image of size and mode {found}", str(wanted))
        # Pillow would clip the values to 8 bits, or show the colours of transparent pixels.
        if transparent or bits != 8:
            got = "transparent pixels" if transparent else f"{bits} bits a channel"
            raise _damaged(shard, sample, index.url, f"an image with {got}", "8 bits a channel and no transparency")
        with decoding():
            pixels = np.asarray(image)
    except PictureError as error:
        raise _damaged(shard, sample, index.url, f"a damaged image ({error})", "an intact PNG") from error
    return pixels[None] if index.channels == 1 else pixels.transpose(2, 0, 1)


def parse_sample(shard: OpenShard, sample: int, url: str) -> dict[str, bytes]:
    """The members of one sample by extension, as the webdataset library reads them.

    Raises:
        DamageError: the bytes are not exactly one sample with png and json members, named by nine digits.
    """
    return _parse(shard, sample, url)[1]


def _parse(shard: OpenShard, sample: int, url: str) -> tuple[str, dict[str, bytes]]:
    source = {"url": shard.row.name, "stream": io.BytesIO(shard.read_sample(sample))}
    try:
        found: list[dict[str, Any]] = list(group_by_keys(tar_file_expander([source])))
    except Exception as error:
        raise _damaged(shard, sample, url, f"bytes that are no tar members ({error})", "a tar sample") from error
    keys = [entry["__key__"] for entry in found]
    if len(found) != 1 or not (len(keys[0]) == len(str(MAX_SAMPLE_ID)) and keys[0].isdecimal() and keys[0].isascii()):
        raise _damaged(shard, sample, url, f"samples named {keys[:3]}", "one sample named by nine digits")
    members = {name: value for name, value in found[0].items() if not name.startswith("__")}
    if not members.keys() <= MEMBERS:
        raise _damaged(shard, sample, url, f"members {sorted(members)}", "png and json members only")
    return keys[0], members


def read_images(index: ShardIndex, count: int, *, cache: ShardCache | None = None) -> Tensor:
    """The first `count` images, or all if there are fewer, as uint8 (B, C, H, W), in the order of the shards.

    Raises:
        UserError: a shard or an image is damaged or cannot be read.
    """
    cache = cache or ShardCache(index.url)
    images: list[NDArray[np.uint8]] = []
    for row in index.shards:
        if len(images) >= count:
            break
        shard = cache.open(row)
        try:
            images += [read_image(shard, sample, index) for sample in range(min(row.num_samples, count - len(images)))]
        finally:
            shard.close()
    return torch.from_numpy(np.stack(images))


def register_webdataset_openers() -> None:
    """Make plain ``webdataset.WebDataset("gs://...")`` and ``"s3://..."`` read through fsspec, not through a shell."""
    for scheme in ("gs", "s3"):
        gopen_schemes[scheme] = _open_url


def _open_url(url: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
    filesystem, path = open_filesystem(url)
    return filesystem.open(path, mode)


def place_of(shard: OpenShard, sample: int, url: str) -> str:
    """Where a sample is, for messages."""
    return f"sample {sample} of shard {url.rstrip('/')}/{shard.row.name}"


def _damaged(shard: OpenShard, sample: int, url: str, got: str, expected: str) -> DamageError:
    return DamageError(
        place_of(shard, sample, url),
        got=got,
        expected=expected,
        remedy="prepare the data again",
    )
