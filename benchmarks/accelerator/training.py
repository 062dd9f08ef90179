"""A real training for the time that is left, with its curve and its images."""

from __future__ import annotations

import gzip
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.accelerator.cases import tiny
from benchmarks.accelerator.work import Skipped, Work, arithmetic, engine, precisions
from benchmarks.step import random_batch, timed
from drl_dist.config.presets import of_length, preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.generate import draw_together
from drl_dist.training.guard import Interrupt
from drl_dist.training.in_memory import InMemoryBatches
from drl_dist.training.loop import StepReport, train
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

SOURCE = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
"""Where Debian's dataset-fashion-mnist puts the images."""
IMAGES, SAMPLES = "images.npy", "samples.npy"
WIDTH, BATCH, NUM_SAMPLES = 128, 128, 64
"""The paper's width; images of a step; images drawn at the end."""
_MARGIN, _HEADER = 2, 16
_MOST_STEPS = 20_000
_FOR_SAMPLES = 0.1
"""Share of the time that is kept for drawing images."""


def run(work: Work) -> None:
    """Train as many steps as the time holds, by the pace of the first ones; then draw images."""
    name, images = load_images()
    precision = "float32" if work.is_small else precisions(work.device)[0]
    config, experiment = engine(precision, "graph"), _experiment(name, is_small=work.is_small)
    with arithmetic(precision):
        pace = _pace(experiment, config, work.device)
        seconds = work.clock.left() * (1 - _FOR_SAMPLES)
        first = experiment.optim.first_objective_steps / experiment.train.num_steps
        mean = first * pace["score_matching"] + (1 - first) * pace["recovery"]
        experiment = of_length(experiment, max(10, min(8 if work.is_small else _MOST_STEPS, int(seconds / mean))))
        work.tell(
            what="data", name=name, images=len(images), precision=precision, width=experiment.model.width,
            batch=experiment.train.batch_size, steps=experiment.train.num_steps, seconds_of_a_step=pace,
        )  # fmt: skip
        state = _train(work, experiment, config, images, seconds)
        begun = time.perf_counter()
        drawn = draw_together(experiment, config, state, 16 if work.is_small else NUM_SAMPLES, whole_way=False)[0]
        # The samples last: where they are, both are shown.
        np.save(work.folder / IMAGES, images[: len(drawn)].numpy())
        np.save(work.folder / SAMPLES, drawn.numpy())
    per_second = len(drawn) / (time.perf_counter() - begun)
    work.tell(what="samples", images=len(drawn), steps=state.step, images_per_second=per_second)


def load_images() -> tuple[str, Tensor]:
    """A preset's name, and its images (N, 1, H, W) uint8: Fashion-MNIST, or where it is not installed, digits.

    Raises:
        Skipped: neither is installed.
    """
    if SOURCE.is_file():
        with gzip.open(SOURCE) as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=_HEADER).reshape(-1, 1, 28, 28)
        return "fashion_mnist", functional.pad(torch.from_numpy(pixels.copy()), (_MARGIN,) * 4)
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise Skipped(
            "neither Fashion-MNIST nor digits: apt-get install dataset-fashion-mnist, or pip install scikit-learn"
        ) from error
    flat, _ = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(flat).reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return "digits", torch.from_numpy(pixels)


def _experiment(name: str, *, is_small: bool) -> Experiment:
    experiment = preset(name, "unet")
    if is_small:
        return tiny(experiment)
    # Adam's steps are to be shorter in proportion as a network is wider.
    rate = experiment.optim.learning_rate * experiment.model.width / WIDTH
    return replace(
        experiment,
        model=replace(experiment.model, width=WIDTH),
        optim=replace(experiment.optim, learning_rate=rate),
        train=replace(experiment.train, batch_size=BATCH),
    )


def _pace(experiment: Experiment, config: EngineConfig, device: torch.device) -> dict[str, float]:
    """Seconds of a step of each objective, on a state of its own."""
    found: dict[str, float] = {}
    images = random_batch(experiment, device)
    for objective in ("score_matching", "recovery"):
        optim = replace(experiment.optim, objective=objective, first_objective=None, first_objective_steps=0)
        alone = replace(experiment, optim=optim)
        step = TrainStep(TrainState.create(alone, device), alone, config)
        for _ in range(3):
            step(images)
        found[objective] = timed(lambda step=step: [step(images) for _ in range(5)], device) / 5
    return found


def _train(work: Work, experiment: Experiment, config: EngineConfig, images: Tensor, seconds: float) -> TrainState:
    until, state = time.monotonic() + seconds, TrainState.create(experiment, work.device)
    step = TrainStep(state, experiment, config, lambda: Interrupt.STOP if time.monotonic() > until else Interrupt.NONE)
    train_config = experiment.train
    batches = InMemoryBatches(
        images,
        seed=train_config.seed,
        batch_size=train_config.batch_size,
        horizontal_flip=train_config.horizontal_flip,
    )
    train(step, state, experiment, batches, [_Curve(work, max(1, train_config.num_steps // 100))])
    return state


@dataclass(frozen=True)
class _Curve:
    """A callback that keeps the numbers of some steps."""

    work: Work
    every: int

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Keep loss, gradient and pace, and means over the levels of what the objective reports."""
        if report.step % self.every and report.step != report.num_steps:
            return
        numbers, means = report.metrics(), dict[str, list[float]]()
        for name, value in numbers.items():
            kind, slash, _ = name.partition("/")
            if slash:
                means.setdefault(kind, []).append(value)
        self.work.tell(
            what="step",
            step=report.step,
            loss=numbers["loss"],
            grad_norm=numbers["grad_norm"],
            images_per_second=report.images_per_second,
            **{kind: sum(values) / len(values) for kind, values in means.items()},
        )
