"""Training on images in memory, or from a loader, with torch and numpy alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drl_dist.common.batch import Batch, BatchSource
from drl_dist.common.errors import UserError
from drl_dist.common.waiting import Waiting, say
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.own_data import experiment_for
from drl_dist.config.presets import default_setting, of_length, preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.data.pixels.scales import scaled_to
from drl_dist.data.pixels.statistics import measure_images
from drl_dist.library.arguments import MAX_WHOLE, refuse, whole
from drl_dist.library.engine import usable_device
from drl_dist.library.images import Images, given_classes, given_images
from drl_dist.library.model import Model
from drl_dist.training.callbacks import Progress, told
from drl_dist.training.in_memory import InMemoryBatches
from drl_dist.training.loop import Callback
from drl_dist.training.loop import train as run_loop
from drl_dist.training.memory import fit_memory
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from drl_dist.training.watch import RunawayGuard

_GUARD_STEPS = 100
"""Steps between looks at chains that run away, besides every tenth."""


def train(
    images: Images | Iterable[Any],
    config: str | Experiment | None = None,
    *,
    labels: object = None,
    label_names: Sequence[str] | None = None,
    num_steps: int | None = None,
    seed: int | None = None,
    callbacks: Sequence[Callback] = (),
    device: torch.device | str | None = None,
    engine: EngineConfig | None = None,
    show_progress: bool = True,
) -> Model:
    """Train a model in this process, with torch and numpy alone.

    On the same images, config and seed the weights are those of ``jobs/train_*.py --without-ray`` with the images in a
    .npy file: on one CPU with as many threads bit for bit. No checkpoints are written: what is to outlive the process
    is saved with `Model.save`, of the result or, in a callback, of `Model.of_state`.

    Args:
        images: a tensor or an array (N, C, H, W), or (N, H, W) of one channel, uint8 or floating point in [0, 1]; or
            something that yields batches of such images each time that it is iterated over, such as a
            `torch.utils.data.DataLoader`, alone or as the first item of a tuple. Batches are cut to the config's
            batch size. Of a loader's images, mirroring and the order are its own.
        config: a preset's name, in its usual setting (docs/training.md); an `Experiment`; or None for one made by rules
            of thumb from the size and the number of the images (`drl_dist.config.own_data`).
        labels: numbers of classes (N,), -1 for none, which the energies are to know (docs/labels.md). Those of a loader
            are the second items of its tuples, which are taken where the config's `condition` has classes.
        label_names: of the classes, in the order of their numbers; by default 0, 1 and so on.
        num_steps: training steps, by default the config's; a first objective keeps its share of them.
        seed: keys the initial weights, the order of the images and all noise; by default the config's.
        callbacks: `drl_dist.training.loop.Callback`s, of which ``on_step(report, state)`` is called after each step;
            `drl_dist.training.callbacks` has some.
        device: by default a GPU if torch can use one, else the CPU.
        engine: precision, compilation, and how a step fits into memory.
        show_progress: print step, loss, rate and remaining time every few seconds.

    Returns:
        the model with the averaged weights, on the device.

    Raises:
        UserError: an argument cannot be used, or the images do not fit the config.
        DivergedError: the loss is not finite, or the chains run away.
    """
    chosen = usable_device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    if not isinstance(callbacks, Iterable):
        refuse("callbacks", type(callbacks).__name__, "a list of objects with on_step(report, state)")
    callbacks = list(callbacks)
    if engine is not None and not isinstance(engine, EngineConfig):
        refuse("engine", type(engine).__name__, "a drl_dist.config.tree.EngineConfig, or None")
    # Which of them a run can have, the config says.
    seed = None if seed is None else whole("seed", seed, "0 to 2**63 - 1", -MAX_WHOLE)
    num_steps = None if num_steps is None else whole("num_steps", num_steps, "at least 1", -MAX_WHOLE)
    for callback in callbacks:
        if not callable(getattr(callback, "on_step", None)):
            raise UserError(
                "argument callbacks",
                got=type(callback).__name__,
                expected="objects with on_step(report, state), as drl_dist.training.loop.Callback",
                remedy="give objects with this method",
            )
    with Waiting("training") if show_progress else nullcontext() as waiting:
        if waiting is not None:
            waiting.begin("looking at the images and making the network", is_told=False)
        data = _Given.of(images, labels)
        experiment = _experiment(data, config, num_steps, seed)
        experiment = _labelled(data, experiment, label_names)
        state = TrainState.create(experiment, chosen)
        fit = fit_memory(experiment, engine or EngineConfig(), device=chosen, state_bytes=state.num_bytes)
        if fit.why and show_progress:
            say(fit.why)
        step = TrainStep(state, experiment, fit.engine)
        # As the jobs do: before whatever would keep what a run that has run away made.
        used: list[Callback] = [RunawayGuard(_GUARD_STEPS), *callbacks]
        if waiting is not None:
            waiting.begin("the first images and step 1 are to come", is_told=False)
            used = told(waiting, None, [Progress(), *used])
        run_loop(step, state, experiment, data.batches(experiment), used)
        return Model.of_state(experiment, state, data=data.facts())


@dataclass(frozen=True)
class _Given:
    """What is to be learned."""

    images: Tensor
    """uint8 (N, C, H, W) on the CPU; of a loader, those of its first batch."""
    loader: Iterable[Any] | None = None
    labels: Tensor | None = None
    """int64 (N,), of images in memory."""

    @classmethod
    def of(cls, images: object, labels: object = None) -> _Given:
        """Images or a loader, looked at."""
        if isinstance(images, str | bytes | dict) or not (hasattr(images, "__array__") or hasattr(images, "__iter__")):
            raise UserError(
                "images",
                got=type(images).__name__,
                expected="a tensor, an array, or a loader of batches of images",
                remedy="give images in memory, or train on a folder of shards with the jobs",
            )
        if hasattr(images, "__array__"):
            given = given_images(images).cpu()
            return cls(given, labels=None if labels is None else given_classes(labels, count=len(given)))
        assert isinstance(images, Iterable)
        if labels is not None:
            raise UserError(
                "argument labels",
                got="labels beside a loader",
                expected="labels as the second items of what the loader yields",
                remedy="leave the argument out, and give a config whose condition has classes",
            )
        if isinstance(images, Iterator):
            raise UserError(
                "images",
                got=f"{type(images).__name__}, which can be iterated over once",
                expected="a loader that begins anew each time, such as a DataLoader or a list of batches",
                remedy="give the loader itself",
            )
        first = next(iter(images), None)
        if first is None:
            raise UserError("images", got="a loader without batches", expected="batches", remedy="give it images")
        return cls(_images_of(first), images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)"""
        return tuple(self.images.shape[1:])

    def count(self) -> int:
        """How many there are.

        Raises:
            UserError: they come from a loader that does not say.
        """
        if self.loader is None:
            return len(self.images)
        try:
            return len(self.loader.dataset)  # type: ignore[attr-defined]
        except (AttributeError, TypeError) as error:
            raise UserError(
                "argument config",
                got="none, with a loader that does not tell how many images it has",
                expected="a preset's name or an Experiment",
                remedy="give one",
            ) from error

    def batches(self, experiment: Experiment) -> BatchSource:
        """Batches of a run."""
        train_config = experiment.train
        if self.loader is not None:
            return _Rebatched(self.loader, self.shape, train_config.batch_size, experiment.condition.size)
        return InMemoryBatches(
            self.images,
            seed=train_config.seed,
            batch_size=train_config.batch_size,
            horizontal_flip=train_config.horizontal_flip,
            labels=self.labels,
        )

    def facts(self) -> dict[str, Any]:
        """For the model card."""
        if self.loader is not None:
            return {"source": type(self.loader).__name__}
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return {"images": len(self.images), "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class _Rebatched:
    """Batches of one size from a loader, pass after pass."""

    loader: Iterable[Any]
    shape: tuple[int, ...]
    batch_size: int
    num_classes: int
    """0 for batches without labels."""

    def __iter__(self) -> Iterator[Batch]:
        kept, position = torch.empty(0, *self.shape, dtype=torch.uint8), 0
        labels = torch.empty(0, dtype=torch.int64)
        for images, classes in self._passes():
            kept, labels = torch.cat([kept, images]), torch.cat([labels, classes])
            while len(kept) >= self.batch_size:
                positions = torch.arange(position, position + self.batch_size)
                of_batch = labels[: self.batch_size] if self.num_classes else None
                yield Batch(kept[: self.batch_size], positions, labels=of_batch)
                kept, labels = kept[self.batch_size :], labels[self.batch_size :]
                position += self.batch_size

    def _passes(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            count = 0
            for batch in self.loader:
                images = _images_of(batch, self.shape)
                count += len(images)
                classes = torch.empty(0, dtype=torch.int64)
                if self.num_classes:
                    second = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
                    classes = given_classes(second, count=len(images), num_classes=self.num_classes)
                yield images, classes
            if not count:
                raise UserError(
                    "images",
                    got="a loader that is empty after its first pass",
                    expected="one that begins anew each time that it is iterated over",
                    remedy="give a DataLoader or a list of batches",
                )


def _labelled(data: _Given, experiment: Experiment, names: Sequence[str] | None) -> Experiment:
    """The config with the names of the labels, for these images."""
    condition = experiment.condition
    if data.labels is not None and condition.kind == "none":
        condition = ConditionConfig(kind="class", dropout=condition.dropout)
    if condition.kind == "none":
        if names is not None:
            raise UserError(
                "argument label_names",
                got="names, without labels",
                expected="labels with them",
                remedy="give labels, or a config whose condition has classes",
            )
        return experiment
    if condition.kind != "class" or (data.labels is None and data.loader is None):
        raise UserError(
            "argument labels",
            got="none" if condition.kind == "class" else f"a config whose condition.kind is {condition.kind}",
            expected="numbers of classes, and a condition of kind class",
            remedy="give them, or train on shards, whose samples can have attributes",
        )
    known = 0 if data.labels is None else int(data.labels.max()) + 1
    chosen = tuple(names or condition.names or map(str, range(max(1, known))))
    if len(chosen) < known or (data.loader is not None and not (names or condition.names)):
        raise UserError(
            "argument label_names",
            got=f"{len(chosen)} names" if known else "none, with a loader",
            expected=f"a name for each of at least {known} classes" if known else "the names of the loader's classes",
            remedy="give them all",
        )
    return replace(experiment, condition=replace(condition, names=chosen))


def _images_of(batch: object, shape: tuple[int, ...] | None = None) -> Tensor:
    """The images of what a loader yields, uint8 (B, C, H, W) on the CPU."""
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    return given_images(batch, what="batch of the loader", shape=shape).cpu()


def _experiment(data: _Given, config: object, num_steps: int | None, seed: int | None) -> Experiment:
    """The config with numbers in all fields, for these images."""
    if config is None:
        channels, resolution, _ = data.shape
        experiment = experiment_for(resolution=resolution, channels=channels, num_images=data.count())
    elif isinstance(config, str):
        experiment = preset(config, default_setting(config))
    elif isinstance(config, Experiment):
        experiment = config
    else:
        raise UserError(
            "argument config",
            got=type(config).__name__,
            expected="a preset's name, a drl_dist.config.tree.Experiment, or None",
            remedy="give one of these",
        )
    model = experiment.model
    shape = (model.channels, model.resolution, model.resolution)
    if data.shape != shape:
        raise UserError(
            "images",
            got=f"images of shape {data.shape}",
            expected=f"{shape}, as the config {experiment.preset} has",
            remedy="leave config out to have one made for these images, or change model.channels and model.resolution",
        )
    if seed is not None:
        experiment = replace(experiment, train=replace(experiment.train, seed=seed))
    if num_steps is not None:
        experiment = of_length(experiment, num_steps)
    # Of a loader, what its first batch says: the order of later ones, and so any larger part, may be left to chance.
    return scaled_to(experiment, lambda: measure_images(data.images.numpy()), "given")
