"""Computing energies of labels, with records of how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.data.subset import LabelledImages, image_batches, labelled_batches
from drl_dist.jobs.common.output.image_job import ImageJob, ImageSet
from drl_dist.likelihood.bayes import label_energies
from drl_dist.likelihood.questions import Questions

if TYPE_CHECKING:
    from drl_dist.diffusion.ladder import NoiseLadder
    from drl_dist.diffusion.recovery import Levels
    from drl_dist.jobs.classify.options import ClassifyOptions

DATA, FIT, OTHER = "data", "fit", "other"
"""Names of sets in requests and records."""


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


@dataclass(frozen=True)
class Work:
    """Energies of images under all labels."""

    job: ImageJob
    questions: Questions
    options: ClassifyOptions

    @cached_property
    def ladder(self) -> NoiseLadder:
        """Of the model."""
        return build_ladder(self.job.experiment.diffusion)

    @cached_property
    def _levels(self) -> Levels:
        return build_levels(self.job.experiment, self.ladder)

    def measure(self, images: ImageSet, of: str, t: int) -> Measured:
        """Energies of a set of images at level t; errors as of `ImageJob.compute`.

        Args:
            of: its name; the other images have no labels that count.
        """
        asks_nothing = of == OTHER and not self.questions.is_class

        def of_batch(batch: LabelledImages, first: int) -> dict[str, Tensor]:
            device = self.job.device
            energies = label_energies(
                self.job.network,
                self.ladder,
                self._levels,
                self.job.noise,
                to_unit_range(batch.images.to(device)),
                torch.arange(first, first + len(batch.images), device=device),
                t,
                self.questions.no_label() if asks_nothing else self.questions.conditions(batch.labels),
                num_draws=self.options.num_draws,
            )
            keys = torch.tensor([int(key) for key in batch.keys], dtype=torch.int64)
            return {"energies": energies, "labels": batch.labels.long(), "keys": keys}

        found = self.job.compute(
            images,
            record_name(of, t),
            "energies",
            lambda first: self._batches(images, of, first),
            of_batch,
            where=f" at level {t}",
        )
        return Measured(**found)

    def _batches(self, images: ImageSet, of: str, first: int) -> Iterator[LabelledImages]:
        size, kind = self.options.batch_size, self.job.experiment.condition.kind
        if of != OTHER:
            yield from labelled_batches(images.index, images.count, size, kind, first=first)
            return
        for batch in image_batches(images.index, images.count, size, first=first):
            unknown = np.zeros(len(batch), np.int64) - 1
            yield LabelledImages(["0"] * len(batch), batch, torch.from_numpy(unknown))
