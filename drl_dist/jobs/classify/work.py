"""Computing energies of labels, with records of how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.common.progress import progress
from drl_dist.config.tree import Experiment
from drl_dist.data.index import ShardIndex
from drl_dist.data.subset import LabelledImages, image_batches, labelled_batches
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.energy.network import EnergyNetwork
from drl_dist.jobs.classify.options import ClassifyOptions
from drl_dist.jobs.classify.questions import Questions
from drl_dist.jobs.common.output.job_folder import JobFolder
from drl_dist.jobs.common.output.job_records import Record, SaveClock, digest_of
from drl_dist.library.engine import check_finite
from drl_dist.likelihood.bayes import label_energies

SETS = {"data": "data", "fit": "fit data", "other": "other images"}
"""Names of sets in records, and for people."""


def record_name(of: str, level: int) -> str:
    """The record of the energies of a set at a level."""
    return f"{of}-{level}.safetensors"


@dataclass(frozen=True)
class Measured:
    """What was computed of N images."""

    energies: Tensor
    """(N, Q K + 1) float64, see `Questions.conditions`; (N, 1), those of no label, where labels are not asked for."""
    labels: Tensor
    """(N,) or (N, size) int64, as `drl_dist.common.batch.Batch.labels`."""
    keys: Tensor
    """(N,) int64: names of the samples in their shards."""

    def arrays(self) -> dict[str, Any]:
        """As a record keeps them."""
        return {"energies": self.energies.numpy(), "labels": self.labels.numpy(), "keys": self.keys.numpy()}

    @classmethod
    def joined(cls, parts: list[Measured]) -> Measured:
        """All of them, in order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("energies", "labels", "keys")))


@dataclass
class Work:
    """Energies of images under all labels."""

    folder: JobFolder
    request: Mapping[str, Any]
    network: EnergyNetwork
    experiment: Experiment
    questions: Questions
    options: ClassifyOptions
    has_begun: bool = False
    """Whether the folder holds the request."""
    clock: SaveClock = field(default_factory=SaveClock)

    def measure(self, index: ShardIndex, count: int, of: str, t: int) -> Measured:
        """Energies of `count` images at level t, those that an earlier start computed as it left them.

        Args:
            of: a name of `SETS`; the other images have no labels that count.

        Raises:
            UserError: an image cannot be read, or an energy is not finite.
        """
        digest, name, what = digest_of(self.request), record_name(of, t), SETS[of]
        kept = self.folder.records.load(name, digest)
        parts: list[Measured] = []
        if kept is not None:
            parts.append(Measured(*(torch.from_numpy(kept.arrays[key]) for key in ("energies", "labels", "keys"))))
            self.has_begun = True
        done = sum(len(part.keys) for part in parts)
        if done:
            print(f"resumes at image {done} of {count} of the {what} at level {t}", flush=True)
        ladder = build_ladder(self.experiment.diffusion)
        levels, noise = build_levels(self.experiment, ladder), PhiloxNoise(self.options.seed)
        device = self.network.device
        with progress(f"energies of {what} at level {t}", count, done, "images") as advance:
            for batch in self._batches(index, count, of, done):
                size = len(batch.images)
                asks_nothing = of == "other" and not self.questions.is_class
                energies = label_energies(
                    self.network,
                    ladder,
                    levels,
                    noise,
                    to_unit_range(batch.images.to(device)),
                    torch.arange(done, done + size, device=device),
                    t,
                    self.questions.no_label() if asks_nothing else self.questions.conditions(batch.labels),
                    num_draws=self.options.num_draws,
                )
                check_finite(
                    energies, f"energies of {index.url}", expected="finite numbers", remedy="use an earlier checkpoint"
                )
                if not self.has_begun:
                    # Not before there is anything to keep: a model without densities is no reason to claim a folder.
                    self.folder.begin(self.request)
                    self.has_begun = True
                keys = torch.tensor([int(key) for key in batch.keys], dtype=torch.int64)
                parts.append(Measured(energies, batch.labels.long(), keys))
                done += size
                advance(size)
                if self.clock.is_due() or done == count:
                    began = time.monotonic()
                    record = Record(Measured.joined(parts).arrays(), {})
                    self.folder.records.write({name: record.to_bytes(digest)})
                    self.clock.saved(began)
        return Measured.joined(parts)

    def _batches(self, index: ShardIndex, count: int, of: str, first: int) -> Iterator[LabelledImages]:
        size, kind = self.options.batch_size, self.experiment.condition.kind
        if of != "other":
            yield from labelled_batches(index, count, size, kind, first=first)
            return
        for images in image_batches(index, count, size, first=first):
            unknown = np.zeros(len(images), np.int64) - 1
            yield LabelledImages(["0"] * len(images), images, torch.from_numpy(unknown))
