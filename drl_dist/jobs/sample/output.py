"""The output folder of a sampling job: shards, records of finished tasks, manifest, grid, index."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.images import Panel
from drl_dist.data.decode import read_images
from drl_dist.data.index import (
    ATTRIBUTE_COUNTS,
    ATTRIBUTES,
    CLASS_COUNTS,
    CLASSES,
    INDEX_NAME,
    METADATA_KEY,
    ShardIndex,
    open_index,
    write_index,
)
from drl_dist.data.manifest import MANIFEST_FORMAT, MANIFEST_NAME, MANIFEST_VERSION, read_manifest
from drl_dist.data.shards import ShardRow, pack_shard, shard_name
from drl_dist.data.subset import images_at, representative
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.output.job_folder import JobFolder, refuse_other
from drl_dist.jobs.common.output.sheet import sheet_of
from drl_dist.jobs.sample.task import (
    PROGRESSION_NAME,
    SPLIT,
    TAR_HEADER_BYTES,
    SampleRequest,
    TaskRecord,
    facts_of,
    samples,
)

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment

GRID_NAME = "grid.png"
GRID_IMAGES = 64
GRID_ROWS, GRID_COLUMNS = 20, 8
"""Of images with labels: rows of different labels, and images of each."""
LABEL_FACTS = (CLASSES, CLASS_COUNTS, ATTRIBUTES, ATTRIBUTE_COUNTS)
"""In the index beside the request, from which they follow."""
_ROWS_AT_ONCE, _RECORDS_AT_ONCE = 65536, 256
DEVICES_BETWEEN = "; "
"""Between the names of devices in the record of a task that is known from a manifest alone."""


class SampleOutput:
    """An output folder and the request that it is for.

    A folder with fewer images of the same request is extended. Its index counts until all new shards are there. Only
    then is it removed, the last shard, if it was not full, exchanged for the one that was made aside, and the new index
    written: readers see the old images, no index, or the new images.

    Args:
        url: the folder.
        experiment: of the model.
        request: the images.
    """

    def __init__(self, url: str, experiment: Experiment, request: SampleRequest) -> None:
        self._experiment, self._request = experiment, request
        shards = rf"{re.escape(request.preset)}-{SPLIT}-\d+\.tar"
        self._job = JobFolder(
            url,
            result=INDEX_NAME,
            request_of_result=self._read_index,
            written=[*map(re.escape, (GRID_NAME, PROGRESSION_NAME, MANIFEST_NAME)), shards],
            records=[r"\d{5,}\.json", shards, re.escape(PROGRESSION_NAME)],
            refuse=self._refuse_other,
        )
        self.url, self._folder, self._records = self._job.url, self._job.files, self._job.records
        self._fields = request.to_record()
        self._wanted, self._noise = request.wanted(experiment.condition), PhiloxNoise(request.seed)
        self._complete: ShardIndex | None = None
        self._kept: set[int] = set()

    @property
    def aside(self) -> str:
        """URL of the folder for shards that take the place of others."""
        return self._records.folder.url

    @property
    def replaced(self) -> list[int]:
        """The task, if any, whose shard is there with fewer images, and counts until the others are made."""
        if self._complete is None or self._complete.num_samples % self._request.shard_size == 0:
            return []
        return [self._complete.num_samples // self._request.shard_size]

    def is_complete(self) -> bool:
        """Whether the index, which is written last, is there and has all images of the request.

        Raises:
            UserError: the storage does not answer, or the folder holds something else, or more images.
        """
        if not self._job.is_complete(self._fields):
            return False
        assert self._complete is not None
        if self._complete.num_samples == self._request.num_images:
            return True
        self._job.check_begun(self._fields)
        return False

    def finished(self) -> dict[int, TaskRecord]:
        """The records of the tasks that earlier starts finished, by number.

        Raises:
            UserError: the storage does not answer.
        """
        records = self._earlier()
        begun = self._job.begun()
        if begun is None:
            return records
        tasks = {f"{task:05d}.json": task for task in range(self._request.num_tasks)}
        head = TaskRecord.head(self._request)
        for name, text in self._records.present(tasks):
            task, record = tasks[name], TaskRecord.from_json(text, self._request, begun["num_images"])
            # The last task of fewer images is another one.
            if record is not None and record.row.num_samples == len(self._request.images_of(task)):
                if task not in records and text.startswith(head):
                    self._kept.add(task)
                records.setdefault(task, record)
        places = [self._folder.sizes(), self._records.folder.sizes()]
        return {
            task: record
            for task, record in sorted(records.items())
            if any(sizes.get(record.row.name) == record.row.size for sizes in places)
        }

    def begin(self, records: Mapping[int, TaskRecord]) -> None:
        """Write what the folder is for, and the finished tasks; this also shows that it can be written.

        Raises:
            UserError: it cannot.
        """
        # The request first: records without one are somebody else's.
        self._job.begin(self._fields)
        # Those that lie there for this request, or for one of more images, stay as they are.
        missing = [task for task in records if task not in self._kept]
        for first in range(0, len(missing), _RECORDS_AT_ONCE):
            some = missing[first : first + _RECORDS_AT_ONCE]
            self._records.write({f"{task:05d}.json": records[task].to_json(self._request) for task in some})

    @contextmanager
    def kept_behind(self) -> Iterator[Callable[[int, TaskRecord], None]]:
        """Keep the records of finished tasks, so that a later start skips them; see `Records.written_behind`.

        Raises:
            UserError: the storage does not take them.
        """
        with self._records.written_behind() as write:
            yield lambda task, record: write(f"{task:05d}.json", record.to_json(self._request))

    def check_shards(self, records: Mapping[int, TaskRecord]) -> None:
        """Return if every shard can be seen from here.

        Raises:
            UserError: some cannot, as when workers on other machines write to disks of their own.
        """
        places = {False: self._folder, True: self._records.folder}
        found = {is_aside: folder.sizes() for is_aside, folder in places.items()}
        for task, record in records.items():
            name, is_aside = record.row.name, task in self.replaced
            size = found[is_aside].get(name)
            if size != record.row.size and found[True].get(name) != record.row.size:
                raise UserError(
                    f"shard {places[is_aside].url_of(name)}",
                    got="no such file" if size is None else f"{size} bytes",
                    expected=f"{record.row.size} bytes as its worker wrote",
                    remedy="use an --out that all machines of the cluster share",
                )

    def exchange(self, records: dict[int, TaskRecord]) -> None:
        """Take the index of fewer images away, and put shards that were made aside where they belong.

        Args:
            records: of all tasks, which are kept; images that were there keep their bytes, and their record.
        """
        for task in self.replaced:
            records[task] = self._with_earlier_images(task, records[task])
            self._records.write({f"{task:05d}.json": records[task].to_json(self._request)})
        self._folder.remove(INDEX_NAME)
        aside = self._records.folder.sizes()
        for record in records.values():
            if record.row.name in aside:
                data = self._records.folder.read(record.row.name)
                if hashlib.sha256(data).hexdigest() == record.row.sha256:
                    self._folder.write(record.row.name, data)
        if PROGRESSION_NAME in aside:
            self._folder.write(PROGRESSION_NAME, self._records.folder.read(PROGRESSION_NAME))

    def _with_earlier_images(self, task: int, record: TaskRecord) -> TaskRecord:
        """A task's shard with the images that were there, should other batches have rounded some of them otherwise."""
        assert self._complete is not None
        row = self._complete.shards[task]
        earlier = self._folder.read(row.name)
        made = self._records.folder.read(record.row.name)
        first = self._request.images_of(task)[0]
        # Images that are damaged are no loss: they are made again.
        is_whole = hashlib.sha256(earlier).hexdigest() == row.sha256
        pngs = [_png_in(made, record.row, place) for place in range(record.row.num_samples)]
        before = [_png_in(earlier, row, place) for place in range(row.num_samples if is_whole else 0)]
        if pngs[: len(before)] == before:
            return record
        pngs = before + pngs[len(before) :]
        images = range(first, first + len(pngs))
        data, new_row = pack_shard(row.name, samples(self._wanted, self._noise, images, pngs))
        self._records.write({row.name: data})
        sizes, checksums = facts_of(pngs)
        return dataclasses.replace(record, row=new_row, png_sizes=sizes, png_sha256=checksums)

    def _earlier(self) -> dict[int, TaskRecord]:
        """The records of the full tasks of a complete folder of fewer images, from its index and manifest."""
        if self._complete is None:
            return {}
        table, facts = read_manifest(self.url)
        device = DEVICES_BETWEEN.join(facts.get("devices", []))
        sizes = table.column("size").to_numpy().astype(np.int32)
        checksums = table.column("sha256")
        if not np.array_equal(table.column("image_id").to_numpy(), np.arange(self._complete.num_samples)):
            raise UserError(
                f"manifest {self._folder.url_of(MANIFEST_NAME)}",
                got=counted(len(table), "image"),
                expected=f"images 0 to {self._complete.num_samples - 1}, as the index beside it has",
                remedy="copy the manifest again, or choose another --out",
            )
        records: dict[int, TaskRecord] = {}
        for task, row in enumerate(self._complete.shards):
            images = self._request.images_of(task)
            if row.num_samples == len(images):
                held = bytes.fromhex("".join(checksums.slice(images[0], len(images)).to_pylist()))
                records[task] = TaskRecord(row, sizes[images[0] : images[-1] + 1], held, device, 0.0)
        return records

    def index(self, records: Mapping[int, TaskRecord]) -> ShardIndex:
        """The index of all shards, not yet written."""
        model = self._experiment.model
        return ShardIndex(
            url=self.url,
            name=self._experiment.preset,
            split=SPLIT,
            resolution=model.resolution,
            channels=model.channels,
            shards=tuple(records[task].row for task in sorted(records)),
            made_by=self._fields | self._labels(),
        )

    def _labels(self) -> dict[str, Any]:
        """Names and counts of the labels that images were asked to have, as prepared data have them."""
        asked = [self._wanted.label_of(row) for row in range(len(self._wanted.rows))]
        if not asked or None in asked:
            return {}
        rows = self._wanted.row_of(torch.arange(self._request.num_images), self._noise)
        per_row = torch.bincount(rows, minlength=len(asked))
        names = list(self._experiment.condition.names)
        counts = (per_row[:, None] * (torch.tensor(self._wanted.vectors) > 0)).sum(0).tolist()
        if self._wanted.kind == "class":
            return {CLASSES: names, CLASS_COUNTS: counts}
        return {ATTRIBUTES: names, ATTRIBUTE_COUNTS: counts}

    def write_manifest(self, records: Mapping[int, TaskRecord], origin: Mapping[str, Any]) -> None:
        """Write a row for each image: image_id, shard, member, offset and size of its PNG in the shard, sha256.

        Args:
            origin: what to say about the model, kept with the request in the schema's metadata as JSON.
        """
        metadata = {
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            **self._fields,
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
        # A row group of each task would make a file of little else than the list of its groups.
        tasks_at_once = -(-_ROWS_AT_ONCE // self._request.shard_size)
        with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
            tasks = sorted(records)
            for first in range(0, len(tasks), tasks_at_once):
                some = tasks[first : first + tasks_at_once]
                images = [list(self._request.images_of(task)) for task in some]
                columns = {
                    "image_id": [image for of_task in images for image in of_task],
                    "shard": [
                        records[task].row.name for task, of_task in zip(some, images, strict=True) for _ in of_task
                    ],
                    "member": [f"{image:09d}.png" for of_task in images for image in of_task],
                    "offset": np.concatenate([records[task].row.offsets for task in some]) + TAR_HEADER_BYTES,
                    "size": np.concatenate([records[task].png_sizes for task in some]).astype(np.int64),
                    "sha256": [checksum for task in some for checksum in records[task].checksums()],
                }
                writer.write_table(pa.table(columns, schema=schema))
        self._folder.write(MANIFEST_NAME, buffer.getvalue())

    def write_grid(self, index: ShardIndex, real: ShardIndex | None, caption: str) -> bytes:
        """Write a picture of the first generated images, with real ones from all over the data to their right; the PNG.

        The first real images would show one class where the data are ordered by class.

        Args:
            caption: model, step and seed.
        """
        panels = [self._generated(index)]
        shown = len(panels[0].images)
        if real is not None:
            some = representative(real.num_samples, min(shown, real.num_samples))
            panels.append(Panel(title=f"real: {real.name} {real.split}", images=images_at(real, some)))
        picture = sheet_of(panels, caption)
        self._folder.write(GRID_NAME, picture)
        return picture

    def _generated(self, index: ShardIndex) -> Panel:
        """The first images, with a row for each label where they have several."""
        wanted, present = self._wanted, list[tuple[str, torch.Tensor]]()
        # Attributes of the data may be those of hardly more than one image each.
        are_many = wanted.kind == "attributes" and wanted.shares is not None and len(wanted.rows) > GRID_ROWS
        if len(wanted.rows) >= 2 and not are_many:
            rows = wanted.row_of(torch.arange(index.num_samples), self._noise)
            of_row = ((name, torch.nonzero(rows == row).flatten()) for row, name in enumerate(wanted.rows[:GRID_ROWS]))
            # Of labels that are drawn, one that only one image has would leave one column for all.
            fewest = 1 if wanted.shares is None else 2
            present = [(name, some) for name, some in of_row if len(some) >= fewest]
        if not present:
            return Panel(title="generated", images=read_images(index, min(GRID_IMAGES, index.num_samples)))
        columns = min(GRID_COLUMNS, *(len(some) for _, some in present))
        places = torch.cat([some[:columns] for _, some in present]).numpy()
        order = places.argsort()
        images = images_at(index, places[order])[torch.from_numpy(order.argsort())]
        return Panel(title="generated", images=images, columns=columns, row_names=tuple(name for name, _ in present))

    def finish(self, index: ShardIndex) -> None:
        """Write the index, which completes the folder, and remove the records."""
        write_index(index)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the records of this request, and what a killed writer of its files left; nothing else."""
        tasks = range(self._request.num_tasks)
        shards = [shard_name(self._request.preset, SPLIT, task) for task in tasks]
        # Records of an extension that waits for its own command stay.
        self._job.clean_up(
            self._fields,
            records=[*(f"{task:05d}.json" for task in tasks), *shards, PROGRESSION_NAME],
            files=[*shards, PROGRESSION_NAME, GRID_NAME, MANIFEST_NAME],
        )

    def _read_index(self) -> Mapping[str, Any]:
        """What a complete folder was made for."""
        self._complete = open_index(self.url)
        made_by = self._complete.made_by
        # What follows from the request is no part of it.
        return {name: value for name, value in made_by.items() if name not in LABEL_FACTS}

    def _refuse_other(self, found: Mapping[str, Any], is_done: bool) -> None:
        """Refuse other images; fewer of the same are extended."""
        held, wanted = found.get("num_images"), self._request.num_images
        same_number = {**found, "num_images": wanted} if isinstance(held, int) else found
        # Of the same images there may be more: nothing else may differ.
        refuse_other(f"output {self.url}", same_number, self._fields, noun="other images")
        if isinstance(held, int) and held > wanted:
            what = "holds" if is_done else "was begun for"
            raise UserError(
                f"output {self.url}",
                got=f"a folder that {what} {held} of these images",
                expected=f"at most {wanted}",
                remedy=f"use --num-images {held}, or choose another --out",
            )


def _png_in(shard: bytes, row: ShardRow, place: int) -> bytes:
    """The PNG of one image of a shard's bytes."""
    first, last = row.span(place)
    with tarfile.open(fileobj=io.BytesIO(shard[first:last])) as tar:
        member = tar.extractfile(tar.next() or tarfile.TarInfo())
        assert member is not None
        return member.read()
