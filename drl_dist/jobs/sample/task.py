"""One sampling task: the images of one shard, a pure function of the model, the request and the task's number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.build import build_sampler
from drl_dist.common.images import PROGRESSION_TITLE, Panel, to_uint8
from drl_dist.common.progress import UnderWay
from drl_dist.data.filesystem import Folder
from drl_dist.data.labels import ATTRIBUTES, LABEL
from drl_dist.data.shards import Sample, ShardRow, encode_png, pack_shard, shard_name
from drl_dist.diffusion.noise import Noise, PhiloxNoise
from drl_dist.jobs.common.chains import CHAIN_FIELDS, ChainKernelName, with_chains
from drl_dist.jobs.common.device import prepare_device
from drl_dist.jobs.common.labels import LABEL_FIELDS, LabelData, LabelOptions, given_labels, wanted_of
from drl_dist.jobs.common.output.job_records import digest_of
from drl_dist.jobs.common.output.sheet import sheet_of
from drl_dist.library.engine import check_finite, frozen_engine
from drl_dist.sampling.labels import Wanted
from drl_dist.sampling.progressive import shown_levels

if TYPE_CHECKING:
    from drl_dist.config.condition import ConditionConfig
    from drl_dist.config.tree import Experiment

SPLIT = "generated"
PROGRESSION_NAME = "progression.png"
PROGRESSION_IMAGES = 8
TAR_HEADER_BYTES = 512
SHA256_BYTES = 32
TELL_SECONDS = 1.0
"""Least seconds between what a task says of a batch that it makes."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest(LabelOptions):
    """All that determines the images, and nothing else."""

    preset: str
    ema_sha256: str
    """Checksum of the averaged weights."""
    config_sha256: str
    """Checksum of the checkpoint's config."""
    num_images: int
    seed: int
    noise_scale: float
    shard_size: int
    batch_size: int
    device: str
    """cpu or cuda; like the number of threads it changes how sums are rounded."""
    threads: int
    precision: Literal["float32", "bfloat16"] = "float32"
    num_chain_steps: int | None = None
    """K, if it was asked for; otherwise the config says it."""
    bound_fraction: float | None = None
    """c, if it was asked for."""
    chain_kernel: ChainKernelName | None = None
    """The kernel, if it was asked for."""
    label_data: LabelData | None = None
    """Labels of the data, where images have random ones of them."""

    @property
    def num_tasks(self) -> int:
        """Shards in all."""
        return -(-self.num_images // self.shard_size)

    def to_record(self) -> dict[str, Any]:
        """All fields by name, but for options that were not given and that requests of earlier versions do not have."""
        # Not `vars`, which has the digests too once they are known.
        names = [field.name for field in dataclasses.fields(self)]
        fields = {name: getattr(self, name) for name in names if name not in (*CHAIN_FIELDS, *LABEL_FIELDS)}
        fields |= {name: getattr(self, name) for name in CHAIN_FIELDS if getattr(self, name) is not None}
        # As JSON gives it back.
        return json.loads(json.dumps(fields | given_labels(self, self.label_data)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all fields, 64 hexadecimal digits."""
        return digest_of(self.to_record())

    @cached_property
    def task_digest(self) -> str:
        """SHA-256 over all fields but the number of images, which changes no image: what records are bound to."""
        return dataclasses.replace(self, num_images=0).digest

    def wanted(self, condition: ConditionConfig) -> Wanted:
        """What the images are to show; errors as of `drl_dist.sampling.labels.wanted`.

        Args:
            condition: of the model.
        """
        return wanted_of(self, condition, num_images=self.num_images, label_data=self.label_data)

    def images_of(self, task: int) -> range:
        """Ids of the images of a task."""
        return range(task * self.shard_size, min((task + 1) * self.shard_size, self.num_images))


@dataclass(frozen=True, eq=False, slots=True)
class TaskRecord:
    """What is known of a finished task. A driver holds those of all: numbers are packed."""

    row: ShardRow
    png_sizes: NDArray[np.int32]
    """(images,) bytes of each image; it starts `TAR_HEADER_BYTES` after its sample."""
    png_sha256: bytes
    """`SHA256_BYTES` of each image."""
    device: str
    """The device's own name."""
    seconds: float

    @staticmethod
    def head(request: SampleRequest) -> bytes:
        """How `to_json` begins for a request, with any number of images."""
        return json.dumps({"request": request.task_digest}).encode()[:-1]

    def to_json(self, request: SampleRequest) -> bytes:
        """The record as it lies beside the shard."""
        facts = {
            "request": request.task_digest,
            "row": dataclasses.asdict(self.row) | {"offsets": self.row.offsets.tolist()},
            "png_sizes": self.png_sizes.tolist(),
            "png_sha256": self.checksums(),
            "device": self.device,
            "seconds": self.seconds,
        }
        return json.dumps(facts).encode()

    def checksums(self) -> list[str]:
        """SHA-256 of each image, 64 hexadecimal digits."""
        whole = self.png_sha256.hex()
        return [whole[first : first + 2 * SHA256_BYTES] for first in range(0, len(whole), 2 * SHA256_BYTES)]

    @classmethod
    def from_json(cls, text: bytes, request: SampleRequest, began_with: int | None = None) -> TaskRecord | None:
        """The record in these bytes, None if it was made for another request or is damaged.

        Args:
            text: as `to_json` gave it.
            request: that it is for, with any number of images.
            began_with: the number of images that the folder was begun with, if it was another one.
        """
        try:
            values: dict[str, Any] = json.loads(text)
        except ValueError:
            return None
        bound = values.pop("request", None)
        if bound not in (request.task_digest, request.digest):
            # Records of earlier versions are bound to the number of images too.
            earlier = dataclasses.replace(request, num_images=began_with or request.num_images)
            if bound != earlier.digest:
                return None
        row = values.pop("row")
        offsets = np.array(row.pop("offsets"), dtype=np.int64)
        sizes = np.array(values.pop("png_sizes"), dtype=np.int32)
        try:
            checksums = bytes.fromhex("".join(values.pop("png_sha256")))
        except ValueError:
            return None
        return cls(ShardRow(**row, offsets=offsets), sizes, checksums, **values)


class SampleTasks:
    """Makes tasks, one after the other, on one device.

    Args:
        experiment: the model's, whose chains are run as the request says.
        ema: averaged weights, float32.
        request: the images.
        out: folder URL that shards are written to.
        aside: folder URL of the tasks below, whose shards take the place of others once all tasks are there.
        replaced: their numbers.
        caption: of the picture of the first images' way from noise: model, step and seed; by default preset and seed.
    """

    def __init__(
        self,
        experiment: Experiment,
        ema: Mapping[str, NDArray[np.float32]],
        request: SampleRequest,
        out: str,
        aside: str = "",
        replaced: Collection[int] = (),
        caption: str | None = None,
    ) -> None:
        self._request, self._out, self._aside, self._replaced = request, out, aside, replaced
        self._caption = caption or f"{request.preset}, seed {request.seed}"
        self._device = prepare_device(request.device, threads=request.threads)
        self._engine = frozen_engine(experiment, ema, self._device, precision=request.precision)
        self._sampler = build_sampler(with_chains(experiment, request), self._engine.network.curvature)
        self._noise, self._wanted = PhiloxNoise(request.seed), request.wanted(experiment.condition)
        self._shape, self._shown = self._engine.network.image_shape, shown_levels(experiment.diffusion.num_levels)

    @property
    def device_name(self) -> str:
        """The device's own name."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"

    @property
    def _remedy(self) -> str:
        """What may give finite images."""
        guided = "lower --guidance or the weights of --compose, " if self._wanted.num_energies > 1 else ""
        return f"{guided}sample an earlier checkpoint, or train at a lower learning rate"

    def make(self, task: int) -> Iterator[int | UnderWay | TaskRecord]:
        """Generate a task and write its shard; the number of images after each batch, then the record. Meanwhile, it
        says every second at most which level they are at.

        Raises:
            UserError: the images are not finite, or the storage does not take the shard.
        """
        began = time.monotonic()
        images, folder = self._request.images_of(task), Folder(self._aside if task in self._replaced else self._out)
        pngs: list[bytes] = []
        for ids in torch.tensor(images, device=self._device).split(self._request.batch_size):
            drawn: list[Tensor] = []
            yield from self._draw(ids, drawn)
            stages = torch.stack(drawn)
            check_finite(
                stages,
                f"generated images {int(ids[0])} to {int(ids[-1])}",
                remedy=self._remedy,
            )
            pngs += [encode_png(pixels) for pixels in to_uint8(stages[-1]).cpu().numpy()]
            if ids[0] == 0:
                folder.write(PROGRESSION_NAME, progression(stages, self._caption))
            yield len(ids)
        name = shard_name(self._request.preset, SPLIT, task)
        data, row = pack_shard(name, samples(self._wanted, self._noise, images, pngs))
        folder.write(name, data)
        yield TaskRecord(row, *facts_of(pngs), self.device_name, round(time.monotonic() - began, 3))

    def _draw(self, ids: Tensor, drawn: list[Tensor]) -> Iterator[UnderWay]:
        """Draw a batch into `drawn`: the images, behind stages on the way to the first of all."""
        draws = self._sampler.num_draws
        keep = self._shown if ids[0] == 0 else (0,)
        made, told = 0, -math.inf
        raw_at = self._wanted.raw_at(self._engine.raw_at, ids, self._noise)
        for t, x in self._sampler.stages(raw_at, self._noise, ids, self._shape):
            if t in keep:
                drawn.append(x)
            if t < len(draws):
                made += max(1, draws[t])
            if t and time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                yield UnderWay(
                    len(ids) * made / sum(max(1, count) for count in draws),
                    f"images {int(ids[0])} to {int(ids[-1])} at noise level {t} of {len(draws)}",
                )


def facts_of(pngs: Sequence[bytes]) -> tuple[NDArray[np.int32], bytes]:
    """Sizes and checksums of images, as a `TaskRecord` has them."""
    sizes = np.array([len(png) for png in pngs], dtype=np.int32)
    return sizes, b"".join(hashlib.sha256(png).digest() for png in pngs)


def samples(wanted: Wanted, noise: Noise, images: Sequence[int], pngs: Sequence[bytes]) -> Iterator[Sample]:
    """Generated images as samples of a shard, with the labels that they were asked to have.

    Args:
        wanted: what they were to show.
        noise: of the job.
        images: their numbers.
        pngs: in the same order.
    """
    rows = wanted.row_of(torch.tensor(images), noise).tolist() if wanted.rows else [None] * len(images)
    for image, png, row in zip(images, pngs, rows, strict=True):
        label = None if row is None else wanted.label_of(row)
        name = LABEL if wanted.kind == "class" else ATTRIBUTES
        yield Sample(image, png, None if label is None else {name: label})


def progression(stages: Tensor, caption: str) -> bytes:
    """A PNG with a row for each of the first few images: from white noise on the left to the sample on the right.

    Args:
        stages: (levels, B, C, H, W), x_T first.
        caption: model, step and seed.
    """
    shown = to_uint8(stages[:, :PROGRESSION_IMAGES].transpose(0, 1).flatten(0, 1))
    return sheet_of([Panel(title=PROGRESSION_TITLE, images=shown, columns=len(stages))], caption)
