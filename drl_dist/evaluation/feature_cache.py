"""Features of a data set, computed once for each network and kept on this machine.

The key is what the features depend on: the fingerprint of the images, the identity of the network and the number of
images. A file carries the key and the checksum of its tensors; one that does not agree with them is made again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drl_dist.common.progress import progress
from drl_dist.data.filesystem import write_local
from drl_dist.data.index import ShardIndex
from drl_dist.data.subset import image_batches
from drl_dist.evaluation.features import FeatureNetwork, Features, features_of
from drl_dist.evaluation.weights import tensors_sha256

FORMAT = "drl_dist.features 1"
"""Raise the number when images are chosen or prepared in another way."""


def cached_features(
    index: ShardIndex,
    count: int,
    network: FeatureNetwork,
    *,
    cache_dir: Path,
    batch_size: int,
    what: str,
) -> Features:
    """Features of `count` images, evenly spread over a data set; computed only if they are not kept yet.

    Args:
        index: the data set; it has that many images.
        cache_dir: where features are kept.
        batch_size: images that go through the network together.
        what: the images' name, shown with the progress.

    Raises:
        UserError: an image cannot be read, the network cannot take them, or the cache cannot be written.
    """
    key = {
        "format": FORMAT,
        "fingerprint": index.fingerprint,
        "network": network.identity,
        "count": str(count),
    }
    path = cache_dir / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.safetensors"
    if path.is_file():
        kept = _read(path, key)
        if isinstance(kept, Features):
            print(f"features of {what} are kept in {path}", file=sys.stderr, flush=True)
            return kept
        print(f"{path} is {kept}; its features are computed again", file=sys.stderr, flush=True)
    with progress(f"features of {what}", count, 0, "images") as advance:
        features = features_of(network, image_batches(index, count, batch_size), advance)
    tensors = _tensors(features)
    write_local(path, save(tensors, key | {"sha256": tensors_sha256(tensors)}))
    return features


def _read(path: Path, key: dict[str, str]) -> Features | str:
    """The features in a file, or what is wrong with it."""
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        return f"damaged ({' '.join(str(error).split())[:120]})"
    checksum = metadata.pop("sha256", None)
    if metadata != key or "features" not in tensors:
        return "a file of something else"
    if checksum != tensors_sha256(tensors):
        return "damaged (its checksum is another)"
    return Features(tensors["features"], tensors.get("logits"))


def _tensors(features: Features) -> dict[str, Tensor]:
    logits = {} if features.logits is None else {"logits": features.logits.contiguous()}
    return {"features": features.values.contiguous(), **logits}
