"""The out-of-distribution job: log-densities of two sets of images under one model, AUROC and histogram."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.config import Experiment
from drl_dist.data.filesystem import Folder
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.errors import UserError
from drl_dist.evaluation.ood import auroc, log_densities
from drl_dist.models import averaged_network
from drl_dist.noise import PhiloxNoise
from drl_dist.progress import progress
from drl_dist.scores.evaluate import choose_device
from drl_dist.scores.images import check_count, image_batches
from drl_dist.scores.options import OodOptions

REPORT_NAME, HISTOGRAM_NAME = "ood.json", "histogram.png"
_BINS = 60


def ood_run(options: OodOptions, experiment: Experiment, ema: Mapping[str, NDArray[np.float32]], step: int) -> int:
    """Compare two sets of images under a model; the exit status.

    Args:
        options: checked; see `drl_dist.scores.options.check_ood`.
        experiment: of the model.
        ema: its averaged weights.
        step: training steps done.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    device = choose_device(options.use_gpu)
    inside, outside = open_index(options.data), open_index(options.other)
    for index in (inside, outside):
        index.check_model(resolution=experiment.model.resolution, channels=experiment.model.channels)
    count = options.num_images or min(inside.num_samples, outside.num_samples)
    check_count(inside, count, what="data")
    check_count(outside, count, what="other images")
    network = averaged_network(experiment, ema, device)

    noise = PhiloxNoise(options.seed)

    def densities(index: ShardIndex, what: str) -> Tensor:
        parts: list[Tensor] = []
        done = 0
        with progress(f"log-densities of {what}", count, 0, "images") as advance:
            for images in image_batches(index, count, options.batch_size):
                ids = torch.arange(done, done + len(images), device=device)
                parts.append(log_densities(network, experiment, noise, images.to(device), ids))
                done += len(images)
                advance(len(images))
        values = torch.cat(parts)
        if not bool(values.isfinite().all()):
            raise UserError(
                f"log-densities of {index.url}",
                got="values that are not finite",
                expected="finite numbers",
                remedy="use an earlier checkpoint",
            )
        return values

    values, others = densities(inside, "data"), densities(outside, "other images")
    area = auroc(values, others)
    report = {
        "auroc": area,
        "num_images": count,
        "seed": options.seed,
        "model": options.model,
        "step": step,
        "data": _facts(inside, values),
        "other": _facts(outside, others),
    }
    folder = Folder(options.out)
    folder.write(
        HISTOGRAM_NAME,
        histogram_png(values, others, area, (f"{inside.name} {inside.split}", f"{outside.name} {outside.split}")),
    )
    folder.write(REPORT_NAME, (json.dumps(report, indent=2) + "\n").encode())
    print(f"AUROC {area:.4f}: the chance that an image of {inside.url} has a higher log-density than one of")
    print(f"{outside.url}; {count} images of each, {HISTOGRAM_NAME} and {REPORT_NAME} in {options.out}", flush=True)
    return 0


def histogram_png(inside: Tensor, outside: Tensor, area: float, names: tuple[str, str]) -> bytes:
    """A PNG of the two histograms over common bins.

    Args:
        inside: (N,) log-densities of the data.
        outside: (M,) of the other images.
        area: their AUROC, shown above.
        names: of the two sets.
    """
    # The figure itself, not pyplot, which would keep it and look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    together = torch.cat([inside, outside]).numpy()
    edges = np.histogram_bin_edges(together, bins=_BINS)
    for values, name, colour in ((inside, names[0], "tab:blue"), (outside, names[1], "tab:orange")):
        label = f"{name} ({len(values)} images)"
        axes.hist(values.numpy(), bins=edges.tolist(), density=True, alpha=0.6, label=label, color=colour)
    axes.set_xlabel("log-density f(y_0, 0) up to a constant, in nats")
    axes.set_ylabel("share of images per nat")
    axes.set_title(f"AUROC {area:.4f}")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _facts(index: ShardIndex, values: Tensor) -> dict[str, Any]:
    return {
        "url": index.url,
        "fingerprint": index.fingerprint,
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
    }
