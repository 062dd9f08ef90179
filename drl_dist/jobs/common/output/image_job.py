"""What jobs over images and one model have in common: they open, check, compute, resume, write and log alike.

Such a job runs in one process. It compares or judges sets of images by what the network says of each, and leaves a
report and pictures in its folder.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.common.progress import progress
from drl_dist.data.subset import check_count
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.common.output.job_folder import JobFolder
from drl_dist.jobs.common.output.job_records import Record, SaveClock, digest_of
from drl_dist.jobs.common.output.report import report_bytes
from drl_dist.library.engine import averaged_network, check_finite
from drl_dist.library.stored import load_model
from drl_dist.tracking.job_runs import (
    JobRun,
    Kind,
    RegisteredVersion,
    is_logged,
    job_run_name,
    log_or_warn,
    warn_unlogged,
)

if TYPE_CHECKING:
    from drl_dist.data.index import ShardIndex
    from drl_dist.energy.network import EnergyNetwork

Batch = TypeVar("Batch")

_LATER = "The same command logs it later."


class ImageOptions(Protocol):
    """Options that all of these jobs have."""

    @property
    def model(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def use_gpu(self) -> bool: ...
    @property
    def tracking_uri(self) -> str | None: ...
    @property
    def allow_code(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """One of these jobs."""

    name: str
    """What is made, as the request says: ``drl_dist.ood``."""
    noun: str
    """What it is called, for people."""
    report: str
    """File of the report, which is written last."""
    files: tuple[str, ...]
    """The other files."""
    records: str
    """Regular expression of the names of its records."""
    tracked: Kind
    """Of its MLflow runs."""
    metrics: Callable[[Mapping[str, Any]], Mapping[str, float | None]]
    """Numbers of a report that are logged, by name; None where there is none."""
    description: Callable[[Mapping[str, Any]], str]
    """What a report says, in a sentence or two."""


@dataclass(frozen=True)
class ImageSet:
    """Images that a job looks at."""

    index: ShardIndex
    count: int
    """How many of them."""
    what: str
    """What they are, for people."""

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {"url": self.index.url, "fingerprint": self.index.fingerprint}


class ImageJob:
    """A job, from its options to its report.

    Args:
        kind: what it makes.
        options: checked.
        sets: the images by their names in the request; None for a set that was not asked for.
        fields: what else the results depend on.

    Raises:
        UserError: something that the user gave cannot be used, or the folder holds something else.
    """

    def __init__(
        self,
        kind: JobKind,
        options: ImageOptions,
        sets: Mapping[str, ImageSet | None],
        fields: Mapping[str, Any],
    ) -> None:
        self._kind, self._options = kind, options
        self.device = prepare_device(device_name(options.use_gpu))
        """Where the network computes."""
        self.noise = PhiloxNoise(options.seed)
        """Keyed by the seed."""
        self._request: dict[str, Any] = {
            **{
                f"{name}_fingerprint": None if given is None else given.index.fingerprint
                for name, given in sets.items()
            },
            **fields,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "device": self.device.type,
        }
        self._folder = JobFolder(
            options.out,
            job=kind.name,
            result=kind.report,
            written=list(map(re.escape, kind.files)),
            records=[kind.records],
        )
        self._folder.check(self._request)
        present = [given for given in sets.values() if given is not None]
        for given in present:
            check_count(given.index, given.count, what=given.what, option="--num-images")
        self.model = load_model(options.model, options.tracking_uri, options.allow_code)
        """The model."""
        self.experiment = self.model.experiment
        """It was trained by."""
        for given in present:
            given.index.check_model(
                resolution=self.experiment.model.resolution, channels=self.experiment.model.channels
            )
        self._request |= {
            "preset": self.experiment.preset,
            "step": self.model.step,
            "ema_sha256": self.model.ema_sha256,
            "config_sha256": self.model.config_sha256,
        }
        self._has_begun, self._clock = False, SaveClock()

    @cached_property
    def network(self) -> EnergyNetwork:
        """The model's, at its averaged weights, on the device."""
        return averaged_network(self.experiment, self.model.ema, self.device)

    def is_complete(self, records: Sequence[str]) -> bool:
        """Whether an earlier start has done all of it, which then is logged where the server was away.

        Args:
            records: names of all records that the job may have written.

        Raises:
            UserError: the folder holds something else.
        """
        if not self._folder.is_complete(self._request):
            return False
        self._clean_up(records)
        self._log_late()
        kind = self._kind
        print(f"{self._options.out} already holds this {kind.noun}, in {kind.report}; nothing to do", flush=True)
        return True

    def compute(
        self,
        images: ImageSet,
        record: str,
        quantity: str,
        batches: Callable[[int], Iterator[Batch]],
        of_batch: Callable[[Batch, int], Mapping[str, Tensor]],
        *,
        where: str = "",
    ) -> dict[str, Tensor]:
        """Tensors by name, of all images of a set, in which what an earlier start computed is as it left it.

        Args:
            images: the set.
            record: name of the file that keeps them.
            quantity: what is computed, for people.
            batches: the images from that of a number on, with what is read beside them.
            of_batch: (batch, number of its first image) -> tensors (B, ...) on the CPU.
            where: ends what people are told, such as ``" at level 3"``.

        Raises:
            UserError: an image cannot be read, or a number is not finite.
        """
        digest, count = digest_of(self._request), images.count
        kept = self._folder.records.load(record, digest)
        parts: list[Mapping[str, Tensor]] = []
        if kept is not None:
            parts.append({name: torch.from_numpy(array) for name, array in kept.arrays.items()})
            self._has_begun = True
        done = sum(map(_length, parts))
        if done:
            print(f"resumes at image {done} of {count} of the {images.what}{where}", flush=True)
        with progress(f"{quantity} of {images.what}{where}", count, done, "images") as advance:
            for batch in batches(done):
                found = of_batch(batch, done)
                for values in found.values():
                    check_finite(
                        values,
                        f"{quantity} of {images.index.url}",
                        expected="finite numbers",
                        remedy="use an earlier checkpoint",
                    )
                if not self._has_begun:
                    # Not before there is anything to keep: a model without densities is no reason to claim a folder.
                    self._folder.begin(self._request)
                    self._has_begun = True
                parts.append(found)
                done += _length(found)
                advance(_length(found))
                if self._clock.is_due() or done == count:
                    began = time.monotonic()
                    arrays = {name: values.numpy() for name, values in _joined(parts).items()}
                    self._folder.records.write({record: Record(arrays, {}).to_bytes(digest)})
                    self._clock.saved(began)
        return _joined(parts)

    def finish(
        self,
        report: Mapping[str, Any],
        files: Mapping[str, bytes],
        lines: Iterable[str],
        records: Sequence[str],
        warnings: Sequence[str],
    ) -> None:
        """Write the files and the report, which completes the folder, tell people, and log.

        Args:
            report: what was found.
            files: other files by name.
            lines: for people.
            records: as of `is_complete`.
            warnings: reasons to distrust the numbers, a sentence each; the report gets them, too.
        """
        report = {**report, "warnings": list(warnings)}
        for name, data in files.items():
            self._folder.files.write(name, data)
        self._folder.finish(report_bytes(report))
        self._clean_up(records)
        for line in (*lines, *(f"warning: {text}" for text in warnings)):
            print(line, flush=True)
        if self.model.version is not None:
            self._log(self.model.version, report, {name: files[name] for name in files if name.endswith(".png")})

    def _clean_up(self, records: Sequence[str]) -> None:
        self._folder.clean_up(self._request, records=records, files=self._kind.files)

    def _run_name(self, version: RegisteredVersion) -> str:
        return job_run_name(self._kind.tracked, version.name, f"{digest_of(self._request)} {self._folder.url}")

    def _log(self, version: RegisteredVersion, report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
        """Log to the experiment of the model, numbers at the model's step."""
        kind, url = self._kind, self._folder.url
        metrics = {name: value for name, value in kind.metrics(report).items() if value is not None}
        run = JobRun(
            kind=kind.tracked,
            version=version,
            name=self._run_name(version),
            params=self._request,
            tags={"data_url": report["data"]["url"], "output_url": url},
            metrics=[(name, value, version.step) for name, value in metrics.items()],
            files={**pictures, kind.report: report_bytes(report)},
            # A metric's name may hold a slash, which a tag's may not everywhere. The last one says that all is logged.
            version_tags={**{name.rsplit("/", 1)[-1]: repr(value) for name, value in metrics.items()}, "url": url},
            description=kind.description(report),
        )
        log_or_warn(self._options.tracking_uri, run, what=f"the {kind.noun} is", later=_LATER)

    def _log_late(self) -> None:
        """Log what a complete folder holds, if the server was away when it was made."""
        version, kind = self.model.version, self._kind
        if version is None:
            return
        try:
            if is_logged(self._options.tracking_uri, version, f"{kind.tracked}.{self._run_name(version)}.url"):
                return
        except UserError as error:
            warn_unlogged(error, what=f"whether the {kind.noun} is", later=_LATER)
            return
        files = self._folder.files
        present = files.sizes()
        pictures = {name: files.read(name) for name in kind.files if name.endswith(".png") and name in present}
        self._log(version, json.loads(files.read(kind.report)), pictures)


def _length(found: Mapping[str, Tensor]) -> int:
    return len(next(iter(found.values())))


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
