"""What the manifest beside generated shards says about where they come from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drl_dist.data.filesystem import Folder
from drl_dist.data.index import METADATA_KEY
from drl_dist.errors import UserError

MANIFEST_NAME = "manifest.parquet"
MANIFEST_FORMAT, MANIFEST_VERSION = "drl_dist.samples", 1


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model that made a folder of images."""

    model: str
    """Its address, as it was given."""
    step: int
    """Training steps done."""
    name: str | None
    """Registered model, None if the model was a checkpoint."""
    version: int | None
    ema_sha256: str | None = None
    """Of the averaged weights, None where the manifest does not say."""


def read_origin(url: str) -> Origin | None:
    """The model that made the images of a folder, None if there is no manifest.

    Raises:
        UserError: the storage does not answer, or the manifest is damaged.
    """
    folder = Folder(url)
    try:
        data = folder.read(MANIFEST_NAME)
    except FileNotFoundError:
        return None
    try:
        facts: dict[str, Any] = json.loads((pq.read_schema(pa.BufferReader(data)).metadata or {})[METADATA_KEY])
        if (facts["format"], facts["version"]) != (MANIFEST_FORMAT, MANIFEST_VERSION):
            raise ValueError(f"format {facts['format']!r} version {facts['version']!r}")
        name, version = facts["model_name"], facts["model_version"]
        return Origin(
            model=str(facts["model"]),
            step=int(facts["step"]),
            name=None if name is None else str(name),
            version=None if version is None else int(version),
            ema_sha256=None if facts.get("ema_sha256") is None else str(facts["ema_sha256"]),
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"manifest {folder.url_of(MANIFEST_NAME)}",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
            expected=f"a Parquet file in format {MANIFEST_FORMAT} version {MANIFEST_VERSION}",
            remedy="copy the manifest again, or sample again",
        ) from error
