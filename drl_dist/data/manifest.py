"""Reading the manifest beside generated shards: the model that made the images, and a row for each image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import METADATA_KEY

MANIFEST_NAME = "manifest.parquet"
MANIFEST_FORMAT, MANIFEST_VERSION = "drl_dist.samples", 1


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model that made a folder of images."""

    model: str
    """Address of the model, as given by the user."""
    step: int
    """Number of training steps of the model."""
    name: str | None
    """Name of the registered model, None if the model was a checkpoint."""
    version: int | None
    ema_sha256: str | None = None
    """SHA-256 of the averaged weights, None if the manifest does not have it."""


def read_origin(url: str) -> Origin | None:
    """The model that made the images of a folder, None if there is no manifest.

    Raises:
        UserError: the storage does not answer, or the manifest is damaged.
    """
    try:
        data = Folder(url).read(MANIFEST_NAME)
    except FileNotFoundError:
        return None
    with _whole(url):
        facts = _facts(pq.read_schema(pa.BufferReader(data)))
        name, version = facts["model_name"], facts["model_version"]
        return Origin(
            model=str(facts["model"]),
            step=int(facts["step"]),
            name=None if name is None else str(name),
            version=None if version is None else int(version),
            ema_sha256=None if facts.get("ema_sha256") is None else str(facts["ema_sha256"]),
        )


def read_manifest(url: str) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of the manifest in a folder, and its metadata about their origin.

    Raises:
        UserError: the storage does not answer, or the manifest is missing or damaged.
    """
    with _whole(url):
        table = pq.read_table(pa.BufferReader(Folder(url).read(MANIFEST_NAME)))
        return table.select(["image_id", "shard", "member", "offset", "size", "sha256"]), _facts(table.schema)


def _facts(schema: pa.Schema) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((schema.metadata or {})[METADATA_KEY])
    if (facts["format"], facts["version"]) != (MANIFEST_FORMAT, MANIFEST_VERSION):
        raise ValueError(f"format {facts['format']!r} version {facts['version']!r}")
    return facts


@contextmanager
def _whole(url: str) -> Iterator[None]:
    """Turn errors about a damaged or missing manifest into `UserError`."""
    try:
        yield
    except (pa.ArrowException, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise UserError(
            f"manifest {Folder(url).url_of(MANIFEST_NAME)}",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
            expected=f"a Parquet file in format {MANIFEST_FORMAT} version {MANIFEST_VERSION}",
            remedy="copy the manifest again, or sample again",
        ) from error
