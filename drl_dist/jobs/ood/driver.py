"""The out-of-distribution job: log-densities of two sets of images under one model, AUROC and histogram."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from drl_dist.common.amounts import counted
from drl_dist.common.figures import figure_png, new_figure
from drl_dist.data.index import open_index
from drl_dist.data.subset import image_batches
from drl_dist.jobs.common.output.image_job import ImageJob, ImageSet, JobKind
from drl_dist.library.log_density import log_densities
from drl_dist.likelihood.auroc import auroc
from drl_dist.likelihood.trust import model_warnings

if TYPE_CHECKING:
    from torch import Tensor

    from drl_dist.jobs.ood.options import OodOptions

REPORT_NAME, HISTOGRAM_NAME = "ood.json", "histogram.png"
_BINS = 60
_RECORDS = ("data.safetensors", "other.safetensors")


def _told(report: Mapping[str, Any]) -> str:
    return (
        f"AUROC {report['auroc']:.4f}: the chance that an image of {report['data']['url']} has a higher log-density "
        f"than one of {report['other']['url']}"
    )


KIND = JobKind(
    name="drl_dist.ood",
    noun="comparison",
    report=REPORT_NAME,
    files=(HISTOGRAM_NAME,),
    records="|".join(map(re.escape, _RECORDS)),
    tracked="ood",
    metrics=lambda report: {"ood/auroc": report["auroc"]},
    description=_told,
)


def ood_run(options: OodOptions) -> int:
    """Compare two sets of images under a model, or what an earlier start has left of it; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.ood.options.check_ood`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    inside, outside = open_index(options.data), open_index(options.other)
    count = options.num_images or min(inside.num_samples, outside.num_samples)
    data, other = ImageSet(inside, count, "data"), ImageSet(outside, count, "other images")
    job = ImageJob(KIND, options, {"data": data, "other": other}, {"num_images": count})
    if job.is_complete(_RECORDS):
        return 0
    values, others = (
        _densities(job, images, options.batch_size, record)
        for images, record in zip((data, other), _RECORDS, strict=True)
    )
    area, step = auroc(values, others), job.model.step
    report = {
        "auroc": area,
        "num_images": count,
        "seed": options.seed,
        "model": options.model,
        "step": step,
        "data": data.facts() | _moments(values),
        "other": other.facts() | _moments(others),
    }
    picture = histogram_png(
        values,
        others,
        area,
        (f"{inside.name} {inside.split}", f"{outside.name} {outside.split}"),
        f"{options.model}, step {step}, seed {options.seed}",
    )
    lines = [
        _told(report),
        f"{counted(count, 'image')} of each; {HISTOGRAM_NAME} and {REPORT_NAME} in {options.out}",
    ]
    job.finish(report, {HISTOGRAM_NAME: picture}, lines, _RECORDS, model_warnings(job.experiment))
    return 0


def _densities(job: ImageJob, images: ImageSet, batch_size: int, record: str) -> Tensor:
    """(count,) float64."""

    def of_batch(batch: Tensor, first: int) -> dict[str, Tensor]:
        ids = torch.arange(first, first + len(batch), device=job.device)
        return {"values": log_densities(job.network, job.experiment, job.noise, batch.to(job.device), ids)}

    found = job.compute(
        images,
        record,
        "log-densities",
        lambda first: image_batches(images.index, images.count, batch_size, first=first),
        of_batch,
    )
    return found["values"]


def histogram_png(inside: Tensor, outside: Tensor, area: float, names: tuple[str, str], caption: str) -> bytes:
    """A PNG of the two histograms over common bins.

    Args:
        inside: (N,) log-densities of the data.
        outside: (M,) of the other images.
        area: their AUROC, shown above.
        names: of the two sets.
        caption: model, step and seed.
    """
    figure = new_figure(7, 4)
    axes = figure.subplots()
    together = torch.cat([inside, outside]).numpy()
    edges = np.histogram_bin_edges(together, bins=_BINS)
    for values, name, colour in ((inside, names[0], "tab:blue"), (outside, names[1], "tab:orange")):
        label = f"{name} ({counted(len(values), 'image')})"
        axes.hist(values.numpy(), bins=edges.tolist(), density=True, alpha=0.6, label=label, color=colour)
    axes.set_xlabel("log-density f(y_0, 0) up to a constant, in nats")
    axes.set_ylabel("share of images per nat")
    axes.set_title(f"AUROC {area:.4f}")
    axes.legend()
    return figure_png(figure, f"log-densities of two sets of images: {caption}")


def _moments(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std(correction=0))}
