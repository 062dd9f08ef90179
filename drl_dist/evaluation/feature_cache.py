"""Cache, on this machine, of a data set's features, computed once for each network.

The key is everything that the features depend on: the fingerprint of the images, the identity of the network and the
number of images. Each file holds its key and the checksum of its tensors; if they do not match, it is computed again.
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
"""Increase the number when images are selected or prepared in another way."""


def cached_features(
    index: ShardIndex,
    count: int,
    network: FeatureNetwork,
    *,
    cache_dir: Path,
    batch_size: int,
    what: str,
) -> Features:
    """Features of `count` images, evenly spread over a data set; computed only if they are not cached.

    Args:
        index: the data set, with at least `count` images.
        cache_dir: folder of the cache.
        batch_size: images that go through the network together.
        what: description of the images, shown with the progress.

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
            print(f"features of {what} are read from {path}", file=sys.stderr, flush=True)
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
        return "a file with other content"
    if checksum != tensors_sha256(tensors):
        return "damaged (its checksum does not match)"
    return Features(tensors["features"], tensors.get("logits"))


def _tensors(features: Features) -> dict[str, Tensor]:
    logits = {} if features.logits is None else {"logits": features.logits.contiguous()}
    return {"features": features.values.contiguous(), **logits}
