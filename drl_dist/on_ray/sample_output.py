"""The folder that a sampling job fills: shards, records of finished units, manifest, grid, index."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drl_dist.config import Experiment, differences
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.data.index import INDEX_NAME, METADATA_KEY, ShardIndex, open_index, write_index
from drl_dist.data.manifest import MANIFEST_FORMAT, MANIFEST_NAME, MANIFEST_VERSION
from drl_dist.data.reading import read_images
from drl_dist.data.shards import shard_name
from drl_dist.errors import UserError
from drl_dist.evaluation.grids import beside, enlargement, grid
from drl_dist.on_ray.sample_unit import (
    PROGRESSION_NAME,
    SPLIT,
    TAR_HEADER_BYTES,
    SampleRequest,
    UnitRecord,
    sheet_png,
)

GRID_NAME = "grid.png"
RECORDS_FOLDER = "_progress"
REQUEST_NAME = "request.json"
GRID_IMAGES = 64
_THREADS = 8


class SampleOutput:
    """An output folder and the request that it is for.

    Args:
        url: the folder.
        experiment: of the model.
        request: the images.
    """

    def __init__(self, url: str, experiment: Experiment, request: SampleRequest) -> None:
        self.url, self._experiment, self._request = url.rstrip("/") or "/", experiment, request
        self._folder, self._records = Folder(self.url), Folder(f"{self.url}/{RECORDS_FOLDER}")

    def is_complete(self) -> bool:
        """Whether the index, which is written last, is there.

        Raises:
            UserError: the storage does not answer, or the folder holds something else.
        """
        check_reachable(self.url)
        if INDEX_NAME not in self._folder.sizes():
            return False
        self._refuse_other(dict(open_index(self.url).made_by))
        return True

    def finished(self) -> dict[int, UnitRecord]:
        """The records of the units that earlier starts finished, by number.

        Raises:
            UserError: the storage does not answer, or the folder holds the beginnings of other images.
        """
        names = self._records.sizes()
        if REQUEST_NAME not in names:
            return {}
        self._refuse_other(json.loads(self._records.read(REQUEST_NAME)))
        numbers = [unit for unit in range(self._request.num_units) if f"{unit:05d}.json" in names]
        with ThreadPoolExecutor(_THREADS) as threads:
            texts = list(threads.map(lambda number: self._records.read(f"{number:05d}.json"), numbers))
        found = {number: UnitRecord.from_json(text, self._request) for number, text in zip(numbers, texts, strict=True)}
        sizes = self._folder.sizes()
        return {
            number: record
            for number, record in sorted(found.items())
            if record is not None and sizes.get(record.row.name) == record.row.size
        }

    def begin(self) -> None:
        """Note what the folder is for; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        self._records.write(REQUEST_NAME, json.dumps(dataclasses.asdict(self._request)).encode())

    def note(self, unit: int, record: UnitRecord) -> None:
        """Keep the record of a finished unit, so that a later start skips it."""
        self._records.write(f"{unit:05d}.json", record.to_json(self._request))

    def check_shards(self, records: Mapping[int, UnitRecord]) -> None:
        """Return if every shard can be seen from here.

        Raises:
            UserError: some cannot, as when workers on other machines write to disks of their own.
        """
        sizes = self._folder.sizes()
        for record in records.values():
            if sizes.get(record.row.name) != record.row.size:
                raise UserError(
                    f"shard {self._folder.url_of(record.row.name)}",
                    got=f"{sizes[record.row.name]} bytes" if record.row.name in sizes else "no such file",
                    expected=f"{record.row.size} bytes as its worker wrote",
                    remedy="use an --out that all machines of the cluster share",
                )

    def index(self, records: Mapping[int, UnitRecord]) -> ShardIndex:
        """The index of all shards, not yet written."""
        model = self._experiment.model
        return ShardIndex(
            url=self.url,
            name=self._experiment.preset,
            split=SPLIT,
            resolution=model.resolution,
            channels=model.channels,
            shards=tuple(records[unit].row for unit in sorted(records)),
            made_by=dataclasses.asdict(self._request),
        )

    def write_manifest(self, records: Mapping[int, UnitRecord], origin: Mapping[str, Any]) -> None:
        """Write a row for each image: image_id, shard, member, offset and size of its PNG in the shard, sha256.

        Args:
            origin: what to say about the model, kept with the request in the schema's metadata as JSON.
        """
        metadata = {
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            **dataclasses.asdict(self._request),
            **origin,
        }
        schema = pa.schema(
            [
                ("image_id", pa.int64()),
                ("shard", pa.string()),
                ("member", pa.string()),
                ("offset", pa.int64()),
                ("size", pa.int64()),
                ("sha256", pa.string()),
            ],
            metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()},
        )
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
            for unit, record in sorted(records.items()):
                images = self._request.images_of(unit)
                columns = {
                    "image_id": list(images),
                    "shard": [record.row.name] * len(images),
                    "member": [f"{image:09d}.png" for image in images],
                    "offset": record.row.offsets + TAR_HEADER_BYTES,
                    "size": list(record.png_sizes),
                    "sha256": list(record.png_sha256),
                }
                writer.write_table(pa.table(columns, schema=schema))
        self._folder.write(MANIFEST_NAME, buffer.getvalue())

    def write_grid(self, index: ShardIndex, real: ShardIndex | None) -> NDArray[np.uint8]:
        """Write a picture of the first generated images, with the first real ones to their right; uint8 (H, W, 3)."""
        enlarge = enlargement(index.resolution)
        sheet = grid(read_images(index, GRID_IMAGES), enlarge=enlarge)
        if real is not None:
            shown = min(GRID_IMAGES, index.num_samples)
            sheet = beside(sheet, grid(read_images(real, shown), enlarge=enlarge))
        self._folder.write(GRID_NAME, sheet_png(sheet))
        return sheet

    def finish(self, index: ShardIndex) -> None:
        """Write the index, which completes the folder, and remove the records."""
        write_index(index)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the records of this request, and what a killed writer of its files left; nothing else."""
        units = range(self._request.num_units)
        # The request goes last: without it, nobody knows whose the others are.
        if REQUEST_NAME in self._records.sizes():
            self._records.remove_written([*(f"{unit:05d}.json" for unit in units), REQUEST_NAME])
        self._records.remove_if_empty()
        shards = (shard_name(self._request.preset, SPLIT, unit) for unit in units)
        self._folder.remove_parts([*shards, PROGRESSION_NAME, GRID_NAME, MANIFEST_NAME, INDEX_NAME])

    def _refuse_other(self, found: dict[str, Any]) -> None:
        if other := differences(found, dataclasses.asdict(self._request)):
            raise UserError(
                f"output {self.url}",
                got="other images (" + ", ".join(other) + ")",
                expected="an empty folder, or images of this request",
                remedy="choose another --out, or repeat the command that began there",
            )
