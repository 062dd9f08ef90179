"""Tasks of the likelihood job: some chains or images, a pure function of model, request and the task's number."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.data.index import ShardIndex
from drl_dist.data.subset import images_at, spread
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.jobs.common.device import prepare_device
from drl_dist.jobs.common.output.job_records import digest_of, read_arrays
from drl_dist.jobs.likelihood.options import MAX_CHAINS, UpperFrom
from drl_dist.library.engine import check_finite, frozen_engine
from drl_dist.likelihood.adaptation import LIKELIHOOD_IDS, AdaptedLevel, MarginalAdaptation, adapted_levels
from drl_dist.likelihood.bits import dequantise, noisy_x_0
from drl_dist.likelihood.marginals import Marginals, draws
from drl_dist.mcmc.adaptation import StepSizes
from drl_dist.mcmc.settings import AdaptationConfig

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment

Kind = Literal["images", "down", "up", "up_from_draws"]
_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_WHAT: dict[Kind, str] = {
    "images": "images",
    "down": "chains from white noise",
    "up": "chains from images",
    "up_from_draws": "chains from draws of the model",
}
_OWN_IDS: dict[Kind, int] = {"down": 0, "up": 1 << 40, "up_from_draws": 2 << 40}
_DRAW_IDS = 3 << 40
_SIGNS_OF_LIFE = 50
"""Reports of a task while it is made, at most."""


class Task(NamedTuple):
    """A task of work: the chains, or images, of a range of numbers."""

    kind: Kind
    """images: log-densities of images; the others: chains from white noise, images, or draws of the model."""
    num_bridges: int
    """K, steps per level; 0 for images."""
    numbers: range
    num_draw_bridges: int = 0
    """Steps per level of the chains whose ends are the draws that others begin at; 0 for those that need no draws."""

    def num_items(self, num_levels: int) -> int:
        """Chain steps; 0 for images, which take no time beside chains, so that they tell nothing of the time left."""
        return len(self.numbers) * (self.num_bridges + self.num_draw_bridges) * num_levels


@dataclass(frozen=True, kw_only=True)
class LikelihoodRequest:
    """All that determines the numbers, and nothing else."""

    preset: str
    ema_sha256: str
    """Checksum of the averaged weights."""
    config_sha256: str
    """Checksum of the checkpoint's config."""
    data_fingerprint: str
    num_images: int
    num_chains: int
    chain_lengths: tuple[int, ...]
    """Steps per level, the shortest first."""
    seed: int
    num_leapfrog_steps: int
    batch_size: int
    precision: Literal["float64", "float32"]
    device: str
    """cpu or cuda; like the number of threads it changes how sums are rounded."""
    threads: int
    adapt: AdaptationConfig | None
    """How step sizes are adapted; None if they are given."""
    schedule_sha256: str | None
    """Checksum of given step sizes."""
    upper_from: UpperFrom = "images"
    """Where the chains begin from which the upper estimate of log Z comes."""

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, 64 hexadecimal digits."""
        return digest_of(self.fields)

    @property
    def fields(self) -> dict[str, Any]:
        """All fields; without `upper_from` where it is what it was before there was a choice, so that folders of then
        are those of the same request."""
        fields = dataclasses.asdict(self)
        if self.upper_from == "images":
            del fields["upper_from"]
        return fields

    @property
    def num_upward(self) -> int:
        """Chains of each length that begin at images: as many as go down, or as there are images."""
        return min(self.num_chains, self.num_images)

    def tasks(self) -> list[Task]:
        """All tasks, in a fixed order."""
        made = [Task("images", 0, numbers) for numbers in self._blocks(self.num_images)]
        # The longest chains first: what comes last should not keep one worker busy for long.
        for length in reversed(self.chain_lengths):
            made += [Task("down", length, numbers) for numbers in self._blocks(self.num_chains)]
            made += [Task("up", length, numbers) for numbers in self._blocks(self.num_upward)]
            if self.upper_from == "draws":
                blocks = self._blocks(self.num_chains)
                made += [Task("up_from_draws", length, numbers, self.chain_lengths[-1]) for numbers in blocks]
        return made

    def _blocks(self, count: int) -> Iterable[range]:
        return (range(first, min(first + self.batch_size, count)) for first in range(0, count, self.batch_size))


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What a task found."""

    arrays: dict[str, NDArray[np.float64]]
    """images: at_data, at_x_0 (B,); chains: log_weight, acceptance_rate, root_mean_square (T, B); up: also at_x_0
    (B,)."""
    device: str
    """The device's own name."""
    seconds: float

    def to_bytes(self, request: LikelihoodRequest) -> bytes:
        """The result as safetensors."""
        facts = {"request": request.digest, "device": self.device, "seconds": str(self.seconds)}
        return save(self.arrays, facts)

    @classmethod
    def from_bytes(cls, data: bytes, request: LikelihoodRequest) -> TaskResult | None:
        """The result in these bytes, None if it was found for another request or is damaged."""
        found = read_arrays(data)
        if found is None or found[1].get("request") != request.digest:
            return None
        arrays, facts = found
        return cls(arrays, facts["device"], float(facts["seconds"]))


class _Model:
    """A network ready to compute on one device."""

    def __init__(
        self, experiment: Experiment, ema: Mapping[str, NDArray[np.float32]], request: LikelihoodRequest
    ) -> None:
        self.device = prepare_device(request.device, threads=request.threads)
        self.request, self.dtype = request, _DTYPES[request.precision]
        # No captured graph: two levels of one network are asked in turn, and a graph holds the weights of one.
        engine = frozen_engine(experiment, ema, self.device, dtype=self.dtype, cuda_graph=False)
        self.ladder, self.shape = build_ladder(experiment.diffusion), engine.network.image_shape
        self.marginals = Marginals(engine.raw_at, build_levels(experiment, self.ladder))

    @property
    def device_name(self) -> str:
        """The device's own name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


class StepSizeTasks:
    """Adapts the step sizes, the only task that it can make.

    Args:
        experiment: the model's.
        ema: averaged weights, float32.
        request: what is wanted.
    """

    def __init__(
        self, experiment: Experiment, ema: Mapping[str, NDArray[np.float32]], request: LikelihoodRequest
    ) -> None:
        self._model = _Model(experiment, ema, request)

    def make(self, task: int) -> Iterator[int | StepSizes]:
        """Adapt level by level; 1 after each level, then the schedule.

        Raises:
            UserError: a level at which no step size has an acceptance rate in the wanted range.
        """
        model, request = self._model, self._model.request
        assert request.adapt is not None
        adaptation = MarginalAdaptation(
            marginals=model.marginals,
            ladder=model.ladder,
            shape=model.shape,
            seed=request.seed,
            config=request.adapt,
            num_leapfrog_steps=request.num_leapfrog_steps,
            batch_size=request.batch_size,
            device=model.device,
            dtype=model.dtype,
        )
        found: list[AdaptedLevel] = []
        for level in adaptation.run():
            found.append(level)
            yield 1
        yield adaptation.step_sizes(found)


class LikelihoodTasks:
    """Makes tasks, one after the other, on one device.

    Args:
        experiment: the model's.
        ema: averaged weights, float32.
        request: what is wanted.
        schedule: step sizes of the marginal densities.
        index: the images.
    """

    def __init__(
        self,
        experiment: Experiment,
        ema: Mapping[str, NDArray[np.float32]],
        request: LikelihoodRequest,
        schedule: StepSizes,
        index: ShardIndex,
    ) -> None:
        self._model, self._request, self._index = _Model(experiment, ema, request), request, index
        self._step_size, self._tasks = schedule.step_size, request.tasks()
        self._noise = PhiloxNoise(request.seed)

    def make(self, task: int) -> Iterator[int | TaskResult]:
        """Make a task; its chain steps after each part, then its result.

        Raises:
            UserError: an image cannot be read, or numbers are not finite.
        """
        began = time.monotonic()
        wanted = self._tasks[task]
        arrays: dict[str, Tensor] = {}
        if wanted.kind == "images":
            at_data = self._images(np.array(wanted.numbers))
            arrays["at_data"] = self._log_density(at_data)
            arrays["at_x_0"] = self._log_density(self._x_0(np.array(wanted.numbers), at_data))
        else:
            yield from self._chains(wanted, arrays)
        for name, values in arrays.items():
            check_finite(
                values,
                f"{name} of {_WHAT[wanted.kind]} {wanted.numbers.start} to {wanted.numbers.stop - 1}",
                expected="finite numbers",
                remedy="use an earlier checkpoint, or --precision float64",
            )
        yield TaskResult(
            {name: np.ascontiguousarray(values.cpu().numpy()) for name, values in arrays.items()},
            self._model.device_name,
            round(time.monotonic() - began, 3),
        )

    def _chains(self, wanted: Task, arrays: dict[str, Tensor]) -> Iterator[int]:
        """Lead chains along the ladder; chain steps after each part."""
        model, request, length = self._model, self._request, wanted.num_bridges
        # Chains of each length and direction have numbers of their own.
        own = LIKELIHOOD_IDS + length * MAX_CHAINS + torch.tensor(wanted.numbers, device=model.device)
        ids = own + _OWN_IDS[wanted.kind]
        steps = {"num_bridges": length, "num_leapfrog_steps": request.num_leapfrog_steps}
        if wanted.kind == "up_from_draws":
            x_0 = yield from self._draws(own + _DRAW_IDS, wanted.num_draw_bridges)
            passage = model.marginals.ascend(x_0, self._step_size, self._noise, ids, **steps)
        elif wanted.kind == "down":
            passage = model.marginals.descend(
                self._step_size, self._noise, ids, model.shape, dtype=model.dtype, **steps
            )
        else:
            images = spread(request.num_images, request.num_upward)[wanted.numbers.start : wanted.numbers.stop]
            x_0 = self._x_0(images, self._images(images))
            arrays["at_x_0"] = self._log_density(x_0)
            passage = model.marginals.ascend(x_0, self._step_size, self._noise, ids, **steps)
        # Not the images of every level: a thousand levels of them would fill the memory.
        rows: dict[int, Tensor] = {}
        reported, num_levels = 0, model.marginals.num_levels
        for part in passage:
            rows[part.level] = part.numbers()
            if len(rows) * _SIGNS_OF_LIFE // num_levels > reported * _SIGNS_OF_LIFE // num_levels:
                yield (len(rows) - reported) * length * len(ids)
                reported = len(rows)
        names = ("log_weight", "acceptance_rate", "root_mean_square")
        arrays |= zip(names, torch.stack([rows[t] for t in range(num_levels)], 1), strict=True)

    def _draws(self, ids: Tensor, num_bridges: int) -> Generator[int, None, Tensor]:
        """Draws of x_0 from the model, (B, C, H, W); chain steps after each part."""
        model, told = self._model, 0
        passage = model.marginals.descend(
            self._step_size,
            self._noise,
            ids,
            model.shape,
            num_bridges=num_bridges,
            num_leapfrog_steps=self._request.num_leapfrog_steps,
            dtype=model.dtype,
        )
        num_levels = model.marginals.num_levels
        for level, x_0 in draws(passage, self._noise, ids):
            passed = num_levels - level
            if passed * _SIGNS_OF_LIFE // num_levels > told * _SIGNS_OF_LIFE // num_levels:
                yield (passed - told) * num_bridges * len(ids)
                told = passed
            if level == 0:
                return x_0
        raise AssertionError("chains that end above level 0")

    def _images(self, numbers: NDArray[np.int64]) -> Tensor:
        """Dequantised images of these numbers, (B, C, H, W)."""
        places = spread(self._index.num_samples, self._request.num_images)[numbers]
        images = images_at(self._index, places).to(self._model.device)
        return dequantise(images, self._noise, self._image_ids(numbers)).to(self._model.dtype)

    def _x_0(self, numbers: NDArray[np.int64], at_data: Tensor) -> Tensor:
        return noisy_x_0(at_data, self._model.ladder, self._noise, self._image_ids(numbers))

    def _image_ids(self, numbers: NDArray[np.int64]) -> Tensor:
        return LIKELIHOOD_IDS + torch.from_numpy(numbers).to(self._model.device)

    def _log_density(self, x: Tensor) -> Tensor:
        """f(y_0, 0) at y_0 = scale_0 x, (B,) float64, nats."""
        ids = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self._model.marginals.density(0, ids)(x)[0].double()


def num_adapted(experiment: Experiment) -> int:
    """Levels at which `StepSizeTasks` adapts."""
    return len(adapted_levels(build_ladder(experiment.diffusion)))
