"""The out-of-distribution job: log-densities of two sets of images under one model, AUROC and histogram."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.figures import figure_png, new_figure
from drl_dist.common.progress import progress
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.subset import check_count, image_batches
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.common.output.job_folder import JobFolder
from drl_dist.jobs.common.output.job_records import Record, SaveClock, digest_of
from drl_dist.jobs.common.output.report import report_bytes
from drl_dist.jobs.ood.options import OodOptions
from drl_dist.library.engine import averaged_network, check_finite
from drl_dist.library.log_density import log_densities
from drl_dist.library.stored import load_model
from drl_dist.likelihood.auroc import auroc
from drl_dist.likelihood.trust import model_warnings

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment
    from drl_dist.energy.network import EnergyNetwork

REPORT_NAME, HISTOGRAM_NAME = "ood.json", "histogram.png"
JOB = "drl_dist.ood"
_BINS = 60
_RECORDS = ("data.safetensors", "other.safetensors")


def ood_run(options: OodOptions) -> int:
    """Compare two sets of images under a model, or what an earlier start has left of it; the exit status.

    Args:
        options: checked; see `drl_dist.jobs.ood.options.check_ood`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    device = prepare_device(device_name(options.use_gpu))
    inside, outside = open_index(options.data), open_index(options.other)
    count = options.num_images or min(inside.num_samples, outside.num_samples)
    request: dict[str, Any] = {
        "data_fingerprint": inside.fingerprint,
        "other_fingerprint": outside.fingerprint,
        "num_images": count,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "device": device.type,
    }
    folder = JobFolder(
        options.out,
        job=JOB,
        result=REPORT_NAME,
        written=[re.escape(HISTOGRAM_NAME)],
        records=list(map(re.escape, _RECORDS)),
    )
    folder.check(request)
    check_count(inside, count, what="data", option="--num-images")
    check_count(outside, count, what="other images", option="--num-images")
    model = load_model(options.model, options.tracking_uri, options.allow_code)
    for index in (inside, outside):
        index.check_model(resolution=model.experiment.model.resolution, channels=model.experiment.model.channels)
    request |= {
        "preset": model.experiment.preset,
        "step": model.step,
        "ema_sha256": model.ema_sha256,
        "config_sha256": model.config_sha256,
    }
    if folder.is_complete(request):
        folder.clean_up(request, records=_RECORDS, files=[HISTOGRAM_NAME])
        print(f"{options.out} already holds this comparison, in {REPORT_NAME}; nothing to do", flush=True)
        return 0
    network = averaged_network(model.experiment, model.ema, device)
    work = _Work(folder, request, network, model.experiment, options, count)
    values, others = work.densities(inside, "data", _RECORDS[0]), work.densities(outside, "other images", _RECORDS[1])
    area, warnings = auroc(values, others), model_warnings(model.experiment)
    report = {
        "auroc": area,
        "num_images": count,
        "seed": options.seed,
        "model": options.model,
        "step": model.step,
        "data": _facts(inside, values),
        "other": _facts(outside, others),
        "warnings": list(warnings),
    }
    folder.files.write(
        HISTOGRAM_NAME,
        histogram_png(
            values,
            others,
            area,
            (f"{inside.name} {inside.split}", f"{outside.name} {outside.split}"),
            f"{options.model}, step {model.step}, seed {options.seed}",
        ),
    )
    folder.finish(report_bytes(report))
    folder.clean_up(request, records=_RECORDS, files=[HISTOGRAM_NAME])
    print(f"AUROC {area:.4f}: the chance that an image of {inside.url} has a higher log-density than one of")
    print(
        f"{outside.url}; {counted(count, 'image')} of each, {HISTOGRAM_NAME} and {REPORT_NAME} in {options.out}",
        flush=True,
    )
    for text in warnings:
        print(f"warning: {text}", flush=True)
    return 0


@dataclass
class _Work:
    """Computing log-densities, with records of how far it is."""

    folder: JobFolder
    request: Mapping[str, Any]
    network: EnergyNetwork
    experiment: Experiment
    options: OodOptions
    count: int
    """Images of each set."""
    has_begun: bool = False
    """Whether the folder holds the request."""
    clock: SaveClock = field(default_factory=SaveClock)

    def densities(self, index: ShardIndex, what: str, name: str) -> Tensor:
        """(count,) float64, those that an earlier start computed as it left them.

        Args:
            index: the images.
            what: what they are, for people.
            name: of their record.

        Raises:
            UserError: an image cannot be read, or a log-density is not finite.
        """
        digest, noise = digest_of(self.request), PhiloxNoise(self.options.seed)
        device = self.network.device
        kept = self.folder.records.load(name, digest)
        parts = [] if kept is None else [torch.from_numpy(kept.arrays["values"])]
        done = sum(map(len, parts))
        self.has_begun = self.has_begun or kept is not None
        if done:
            print(f"resumes at image {done} of {self.count} of the {what}", flush=True)
        with progress(f"log-densities of {what}", self.count, done, "images") as advance:
            for images in image_batches(index, self.count, self.options.batch_size, first=done):
                ids = torch.arange(done, done + len(images), device=device)
                values = log_densities(self.network, self.experiment, noise, images.to(device), ids)
                check_finite(
                    values,
                    f"log-densities of {index.url}",
                    expected="finite numbers",
                    remedy="use an earlier checkpoint",
                )
                if not self.has_begun:
                    # Not before there is anything to keep: a model without densities is no reason to claim a folder.
                    self.folder.begin(self.request)
                    self.has_begun = True
                parts.append(values)
                done += len(images)
                advance(len(images))
                if self.clock.is_due() or done == self.count:
                    began = time.monotonic()
                    record = Record({"values": torch.cat(parts).numpy()}, {})
                    self.folder.records.write({name: record.to_bytes(digest)})
                    self.clock.saved(began)
        return torch.cat(parts)


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


def _facts(index: ShardIndex, values: Tensor) -> dict[str, Any]:
    return {
        "url": index.url,
        "fingerprint": index.fingerprint,
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
    }
