"""Names of what is logged while a model trains."""

from __future__ import annotations

import re

METRICS: dict[str, str] = {
    "loss": "weighted loss of the objective",
    "log_density_pos/level_{t}": "mean log-density of y_pos at noise level t, in nats",
    "log_density_neg/level_{t}": "mean log-density of y_neg at noise level t, in nats",
    "log_density_gap/level_{t}": "mean log-density of y_pos less that of y_neg at noise level t, in nats",
    "displacement/level_{t}": "root-mean-square move of a chain from its start at noise level t, per pixel",
    "noise_error/level_{t}": "root-mean-square error of the noise that the score tells at noise level t, per pixel",
    "predicted_noise/level_{t}": "root mean square of the noise that the score tells at noise level t, per pixel",
    "grad_norm": "norm of the gradient before clipping",
    "learning_rate": "learning rate, with warm-up",
    "images_per_second": "images trained on per second, over all workers",
    "chain_steps_per_second": "Langevin steps per second, times images, over all workers",
    "data_wait_fraction": "share of the time that the step waited for data",
    "images_seen": "images trained on since the start of the run, over all workers",
    "goodput": "time that the steps made since the job's start take undisturbed, over the time since its start",
    "checkpoint_stall_fraction": "share of the time since the workers' start in which training waited for checkpoints",
    "bad_samples": "damaged samples that others stood in for since the start of the run, over all workers",
    "rollbacks": "how often the run has diverged and gone back to a checkpoint",
    "score/fid": "FID of a few generated images against as many real ones, every `tracking.score_every_steps`",
    "score/kid": "KID of the same images",
}
"""Metric names and what they say; ``{t}`` is the noise level, from 0."""

IMAGES: dict[str, str] = {
    "samples": "grid of generated images",
    "progression": "the same chains level by level, noise first",
}
"""Image names and what they show."""

_LEVEL = re.compile(r"level_\d+$")


def describe(name: str) -> str | None:
    """What a metric says, None for one that is not in the table."""
    return METRICS.get(_LEVEL.sub("level_{t}", name))
