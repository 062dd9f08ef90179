"""The one table of metrics: name, meaning, unit, whose MLflow runs hold it, and whether Prometheus gets it.

``python -m drl_dist.tracking.metrics`` prints it as docs/tracking.md has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Exported = Literal["gauge", "counter"]
HEALTH_TAG = "drl_dist.health"
"""Tag of a training run that says in words how it does."""
# What Ray puts behind a name.
_SUFFIX: dict[Exported, str] = {"gauge": "", "counter": "_total"}
_PLACEHOLDERS = ((re.compile(r"level_[\d-]+$"), "level_{t}"), (re.compile(r"_(lower|upper)$"), "_{side}"))


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    name: str
    """In MLflow; with ``ray_drl_`` before it in Prometheus. ``{t}`` is the noise level, from 0, or a band of levels,
    ``{side}`` is lower or upper."""
    meaning: str
    unit: str = ""
    """Empty for shares, counts of events and numbers without one."""
    runs: str = ""
    """Kinds of MLflow runs that hold it; empty if it is only exported."""
    exported: Exported | None = None
    """How it is exported for Prometheus; None if it is not."""
    page: str = ""
    """Page of the documentation that says more."""
    section: str = ""
    """Section of MLflow's page that its chart stands in, as a prefix of its name there. The page sorts sections by
    name, and puts charts without one behind them all: what is looked at first is in ``main``, and the many charts of
    noise levels are in ``values_per_level``, behind the others."""

    @property
    def description(self) -> str:
        """Meaning and unit."""
        return f"{self.meaning}, in {self.unit}" if self.unit else self.meaning


_EPOCH = "seconds since 1970"
METRICS: tuple[Metric, ...] = (
    Metric("loss", "weighted loss of the objective", runs="training", exported="gauge", section="main"),
    Metric(
        "log_density_pos/level_{t}",
        "mean log-density of y_pos at noise level t",
        "nats",
        "training",
        section="values_per_level",
    ),
    Metric(
        "log_density_neg/level_{t}",
        "mean log-density of y_neg at noise level t",
        "nats",
        "training",
        section="values_per_level",
    ),
    Metric(
        "log_density_gap/level_{t}",
        "mean log-density of y_pos less that of y_neg at level t",
        "nats",
        "training",
        section="values_per_level",
    ),
    Metric(
        "displacement/level_{t}",
        "root-mean-square move per pixel of a chain from its start at noise level t",
        "units of the data, which is in [-1, 1]",
        "training",
        section="values_per_level",
    ),
    Metric(
        "curvature/level_{t}",
        "root-mean-square curvature of the conditional log-density along the moves of chains, over its bound",
        runs="training",
        page="training.md",
        section="values_per_level",
    ),
    Metric(
        "noise_error/level_{t}",
        "root-mean-square error per pixel of the noise that the score predicts at noise level t",
        "standard deviations",
        "training",
        section="values_per_level",
    ),
    Metric(
        "predicted_noise/level_{t}",
        "root mean square per pixel of the noise that the score predicts at noise level t",
        "standard deviations",
        "training",
        section="values_per_level",
    ),
    Metric("grad_norm", "norm of the gradient before clipping", runs="training", exported="gauge", section="main"),
    Metric("learning_rate", "learning rate, with warm-up", runs="training", section="main"),
    Metric("step", "training steps made", exported="gauge"),
    Metric("step_timestamp_seconds", "when the last step was made; at first the job's start", _EPOCH, exported="gauge"),
    Metric(
        "step_seconds",
        "duration of a step, the waiting for data included",
        "seconds",
        "training",
        "gauge",
        section="speed",
    ),
    Metric(
        "recent_step_seconds",
        "duration of a step, mean over about the last minute",
        "seconds",
        "training",
        section="speed",
    ),
    Metric(
        "images_seen", "images trained on since the start of the run, over all workers", runs="training", section="main"
    ),
    Metric(
        "images_per_second",
        "images trained on, over all workers",
        "images per second",
        "training",
        "gauge",
        section="speed",
    ),
    Metric(
        "chain_steps_per_second",
        "Langevin steps times images, over all workers",
        "chain steps per second",
        "training",
        section="speed",
    ),
    Metric(
        "data_wait_fraction",
        "share of the time that steps waited for data",
        runs="training",
        exported="gauge",
        section="speed",
    ),
    Metric(
        "goodput",
        "time that the steps made since the job's start take undisturbed, over the time since its start",
        runs="training",
        exported="gauge",
        section="speed",
    ),
    Metric(
        "checkpoint_stall_fraction",
        "share of the time since the workers' start in which training waited for checkpoints",
        runs="training",
        exported="gauge",
        section="speed",
    ),
    Metric(
        "checkpoint_every_steps",
        "steps between checkpoints, with `checkpoint.every_steps` auto, each time that they change",
        runs="training",
        page="reliability.md",
        section="reliability",
    ),
    Metric(
        "checkpoint_timestamp_seconds",
        "when the newest checkpoint was complete in storage; at first the job's start",
        _EPOCH,
        exported="gauge",
    ),
    Metric(
        "bad_samples",
        "damaged samples that were replaced since the start of the run, over all workers",
        runs="training",
        exported="gauge",
        page="data.md",
        section="reliability",
    ),
    Metric(
        "saturated_fraction",
        "share of the pixels of the sample grid at 0 or 255",
        runs="training",
        page="health.md",
        section="pixels",
    ),
    Metric(
        "data_saturated_fraction",
        "the same of the first batch of real images since the workers' start",
        runs="training",
        page="health.md",
        section="pixels",
    ),
    Metric(
        "health",
        "0 healthy or too early to say, 1 data-bound, 3 saturating, 4 diverging",
        runs="training",
        page="health.md",
        section="main",
    ),
    Metric(
        "rollbacks",
        "how often the run has gone back to a checkpoint",
        runs="training",
        page="training.md",
        section="reliability",
    ),
    Metric("spool_unsent_bytes", "what is still to be sent to MLflow", "bytes", exported="gauge"),
    Metric("mlflow_told_timestamp_seconds", "when MLflow last took what it was sent", _EPOCH, exported="gauge"),
    Metric("workers", "1 of each living training worker, 0 of their job: the sum is their number", exported="gauge"),
    Metric("started_timestamp_seconds", "when a job that still runs was started", _EPOCH, exported="gauge"),
    Metric("ended", "jobs that made all their steps or images, or were asked to stop", exported="counter"),
    Metric("sampled_images", "images that a sampling job has made", exported="gauge"),
    Metric("sampling_images_per_second", "images that a sampling job makes", "images per second", exported="gauge"),
    Metric("score/fid", "FID of generated images against as many real ones", runs="training, scores", page="scores.md"),
    Metric("score/kid", "KID of the same images, mean over subsets", runs="training, scores", page="scores.md"),
    Metric("score/kid_std", "standard deviation of the KID over subsets", runs="scores"),
    Metric("score/precision", "share of generated images within the manifold of the real ones", runs="scores"),
    Metric("score/recall", "share of real images within the manifold of the generated ones", runs="scores"),
    Metric("score/intra_fid", "mean FID of the classes, where it was asked for", runs="scores"),
    Metric("score/accuracy", "share of generated images that a classifier takes for what was asked", runs="scores"),
    Metric("score/inception_score", "inception score of the generated images", runs="scores"),
    Metric("score/inception_score_std", "standard deviation of the inception score over splits", runs="scores"),
    Metric(
        "ood/auroc",
        "chance that an image of the data has a higher log-density than another image",
        runs="ood",
        page="scores.md",
    ),
    Metric(
        "classification/accuracy",
        "share of labels that are inferred rightly",
        runs="classification",
        page="scores.md",
    ),
    Metric("classification/mean_accuracy", "mean of the accuracies of all labels", runs="classification"),
    Metric("classification/ece", "expected calibration error of inferred labels", runs="classification"),
    Metric("classification/brier", "Brier score of inferred labels", runs="classification"),
    Metric("classification/log_loss", "mean of -log p(right label)", "nats", "classification"),
    Metric("classification/level", "noise level of the energies", runs="classification"),
    Metric(
        "classification/auroc_unlabelled",
        "as ood/auroc, by energies of that level without a label",
        runs="classification",
    ),
    Metric(
        "classification/auroc_summed",
        "the same by energies summed over all classes",
        runs="classification",
    ),
    Metric("sweep_score", "last score of a trial", runs="trials", page="sweeps.md"),
    Metric(
        "likelihood/is_unknown",
        "1 if the bits per dimension cannot be the likelihood, otherwise 0",
        runs="likelihood",
        page="likelihood.md",
    ),
    Metric(
        "likelihood/log_z_{side}",
        "estimate that bounds log Z on average",
        "nats",
        "likelihood",
        page="likelihood.md",
    ),
    Metric(
        "likelihood/log_z_limit_{side}",
        "log Z is above (lower) or below (upper) it with a probability of 95 %",
        "nats",
        "likelihood",
    ),
    Metric("likelihood/ess_{side}", "effective number of the chains that this estimate rests on", runs="likelihood"),
    Metric("likelihood/bits_per_dim_{side}", "negative log-likelihood by this estimate", "bits/dim", "likelihood"),
    Metric(
        "likelihood/bits_per_dim_x0_{side}", "the same of x_0, with the ladder's first noise", "bits/dim", "likelihood"
    ),
    Metric("likelihood/level_log_z_ratio_{side}", "what level STEP adds to the estimate", "nats", "likelihood"),
    Metric("likelihood/level_ess_{side}", "effective number of chains at level STEP", runs="likelihood"),
    Metric("likelihood/level_acceptance_rate_{side}", "acceptance rate at level STEP", runs="likelihood"),
    Metric(
        "likelihood/bits_per_dim_x0_annealed",
        "negative log-likelihood of x_0 under the annealed sampler, at most",
        "bits/dim",
        "likelihood",
    ),
)
"""All metrics, in the order of the documentation."""

_BY_NAME = {metric.name: metric for metric in METRICS}
_EARLIER_SECTIONS = {"per_level"}
"""Sections of runs that earlier versions tracked."""
_SECTIONS = {metric.section for metric in METRICS if metric.section} | _EARLIER_SECTIONS


def page_name(name: str) -> str:
    """A metric's name in MLflow, with its section, by which the page groups and orders charts."""
    metric, plain = find_metric(name), plain_name(name)
    return f"{metric.section}/{plain}" if metric is not None and metric.section else plain


def plain_name(name: str) -> str:
    """A metric's own name by its name in MLflow, with or without its section."""
    section, _, plain = name.partition("/")
    return plain if section in _SECTIONS else name


def find_metric(name: str) -> Metric | None:
    """The row of a metric by its name in MLflow, None if it is not in the table."""
    name = plain_name(name)
    for pattern, placeholder in _PLACEHOLDERS:
        name = pattern.sub(placeholder, name)
    return _BY_NAME.get(name)


def describe(name: str) -> str | None:
    """Meaning and unit of a metric by its name in MLflow, None if it is not in the table."""
    metric = find_metric(name)
    return None if metric is None else metric.description


def markdown_table() -> str:
    """The table as docs/tracking.md has it."""
    lines = ["| metric | meaning | unit | MLflow runs | section | Prometheus |", "|---|---|---|---|---|---|"]
    for metric in METRICS:
        page = f" ([{metric.page}]({metric.page}))" if metric.page else ""
        exported = f"`ray_drl_{metric.name}{_SUFFIX[metric.exported]}`" if metric.exported else ""
        cells = (f"`{metric.name}`", f"{metric.meaning}{page}", metric.unit, metric.runs, metric.section, exported)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown_table(), end="")
