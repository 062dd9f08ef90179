"""What visitors ask for: one image each, addressed by seed and number as everywhere in the project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drl_dist.build import build_posterior_sampler, build_sampler
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_unit_range
from drl_dist.diffusion.noise import MAX_SAMPLE_IDS, Noise
from drl_dist.diffusion.recovery import Levels, RawAtLevel
from drl_dist.library.arguments import check, noise_of, real, whole
from drl_dist.library.images import GREY_LEVELS, given_images, given_mask, given_noise_std, given_noisy
from drl_dist.sampling.composition import LabelledRawAtLevel
from drl_dist.sampling.inpainting import ObservedPixels, PosteriorSampler
from drl_dist.sampling.interpolation import InterpolatedNoise
from drl_dist.sampling.labels import Wanted, wanted
from drl_dist.sampling.procedure import Procedure
from drl_dist.serving.read_ahead import ReadAhead

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment
    from drl_dist.library.model import Model

MAX_CHAIN_STEPS = 1000
"""Largest K that a visitor may ask for."""
MAX_ROUNDS = 100
"""Largest number of rounds."""
MAX_NUMBER = MAX_SAMPLE_IDS - 1
"""Largest number of an image."""


@dataclass(frozen=True)
class Served:
    """The model that requests are made of.

    Args:
        experiment: the model's.
        curvature: `EnergyNetwork.curvature` of its network.
        image_shape: (C, H, W).
        device: where it computes.
    """

    experiment: Experiment
    curvature: Tensor | None
    image_shape: tuple[int, int, int]
    device: torch.device

    def ids(self, number: int) -> Tensor:
        """(1,) int64 on the device."""
        return torch.tensor([number], device=self.device)


@dataclass(frozen=True, eq=False)
class Begun:
    """A request that can be worked on.

    Args:
        procedure: of one image.
        view: the network -> that of the request's labels.
        energy_scale: (T,) as of `drl_dist.diffusion.recovery.Levels`.
        num_energies: images that it gives the network at once.
        num_gradients: how often it does so.
    """

    procedure: Procedure
    view: Callable[[LabelledRawAtLevel], RawAtLevel]
    energy_scale: Tensor
    num_energies: int
    num_gradients: int


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """What all requests have.

    Args:
        seed: keys all noise, in [0, 2**63).
        label: name of the label, as of ``--label``; where it names several, images take turns by their numbers.
        compose, guidance: as of ``--compose`` and ``--guidance``.
        num_chain_steps: K of every level; by default the model's own.
    """

    seed: int = 0
    label: str | None = None
    compose: str | None = None
    guidance: float | None = None
    num_chain_steps: int | None = None

    @abstractmethod
    def begin(self, served: Served) -> Begun:
        """The request, checked.

        Raises:
            UserError: something that it asks for cannot be had.
        """

    def _experiment(self, served: Served) -> Experiment:
        if self.num_chain_steps is None:
            return served.experiment
        steps = whole("num_chain_steps", self.num_chain_steps, f"1 to {MAX_CHAIN_STEPS}", 1, MAX_CHAIN_STEPS)
        mcmc = replace(served.experiment.mcmc, sampling_chain_steps=steps)
        return replace(served.experiment, mcmc=mcmc)

    def _sampled(self, served: Served, noise: Noise, number: int, row: int) -> Begun:
        """A generated image.

        Args:
            served: the model.
            noise: of the image.
            number: that addresses it in the noise.
            row: number of the image whose turn among the labels it has.
        """
        # On the way that `drl_dist.Model.sample` goes.
        sampler = build_sampler(self._experiment(served), served.curvature)
        procedure = sampler.procedure(ReadAhead(noise), served.ids(number), served.image_shape)
        return self._begun(served, procedure, sampler.levels, sampler.num_gradients, row)

    def _posterior_sampler(self, served: Served, num_rounds: int) -> PosteriorSampler:
        return build_posterior_sampler(self._experiment(served), num_rounds, served.curvature)

    def _begun(self, served: Served, procedure: Procedure, levels: Levels, num_gradients: int, row: int) -> Begun:
        asked, ids = self._wanted(served, row), served.ids(row)

        def view(network: LabelledRawAtLevel) -> RawAtLevel:
            return asked.raw_at(network, ids, noise_of(self.seed))

        return Begun(procedure, view, levels.energy_scale, asked.num_energies, num_gradients)

    def _wanted(self, served: Served, number: int) -> Wanted:
        asked = wanted(served.experiment.condition, label=self.label, compose=self.compose, guidance=self.guidance)
        if asked.counts is not None:
            total = sum(asked.counts)
            check("number", number, f"0 to {total - 1}, of the images that label counts", number < total)
        return asked


@dataclass(frozen=True, kw_only=True)
class SampleRequest(Request):
    """The generated image of a seed and a number: that of `drl_dist.Model.sample`, and of ``jobs/sample.py``.

    Args:
        number: of the image among those of its seed.
    """

    number: int = 0

    def begin(self, served: Served) -> Begun:
        """See `Request.begin`."""
        number = _number(self.number)
        return self._sampled(served, noise_of(self.seed), number, number)


@dataclass(frozen=True, kw_only=True)
class InterpolateRequest(Request):
    """An image between two generated ones: that of `drl_dist.Model.interpolate`, of the first label.

    Args:
        first, second: numbers of two images.
        second_seed: of the second image, by default that of the first.
        weight: from 0, the first one, to 1.
    """

    first: int = 0
    second: int = 1
    second_seed: int | None = None
    weight: float = 0.5

    def begin(self, served: Served) -> Begun:
        """See `Request.begin`."""
        expected = f"two numbers from 0 to {MAX_NUMBER}, different ones of the same seed"
        first, second = (whole("first and second", end, expected, 0, MAX_NUMBER) for end in (self.first, self.second))
        has_other_seed = self.second_seed is not None and self.second_seed != self.seed
        check("first and second", (first, second), expected, has_other_seed or first != second)
        weight = real("weight", self.weight, "from 0 to 1")
        check("weight", weight, "a number from 0 to 1", 0 <= weight <= 1)
        ends = torch.tensor([first, second], device=served.device)
        weights = torch.tensor([weight], dtype=torch.float64, device=served.device)
        second_noise = noise_of(self.second_seed) if self.second_seed is not None and has_other_seed else None
        noise = InterpolatedNoise(noise_of(self.seed), ends[:1], ends[1:], weights, second_noise)
        return self._sampled(served, noise, 0, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class InpaintRequest(Request):
    """An image whose hidden pixels are filled in: that of `drl_dist.Model.inpaint` at this place among its images.

    Args:
        image: (C, H, W), uint8 or floating point in [0, 1]; hidden pixels are not looked at.
        mask: bool (H, W), true where a pixel is to be filled in.
        number: of the image, which keys its noise.
        num_rounds: runs of each level's chain, 1 to `MAX_ROUNDS`.
    """

    image: Tensor
    mask: Tensor
    number: int = 0
    num_rounds: int = 4

    def begin(self, served: Served) -> Begun:
        """See `Request.begin`."""
        number = _number(self.number)
        given = given_images(self.image[None], what="image", shape=served.image_shape).to(served.device)
        hidden = given_mask(self.mask, count=1, resolution=served.image_shape[1]).to(served.device)
        num_rounds = whole("num_rounds", self.num_rounds, f"1 to {MAX_ROUNDS}", 1, MAX_ROUNDS)
        sampler = self._posterior_sampler(served, num_rounds)
        observed = ObservedPixels((~hidden).expand(1, *served.image_shape))
        noise = ReadAhead(noise_of(self.seed))
        procedure = sampler.completion(noise, served.ids(number), to_unit_range(given), observed)
        return self._begun(served, procedure, sampler.levels, sampler.num_gradients(), number)


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoiseRequest(Request):
    """A draw of an image given the same with noise: that of `drl_dist.Model.denoise` at this place among its images.

    Args:
        image: (C, H, W) with the noise, uint8 or floating point, then not necessarily in [0, 1].
        noise_std: its standard deviation, in grey levels of 255.
        number: of the image, which keys its noise.
    """

    image: Tensor
    noise_std: float
    number: int = 0

    def begin(self, served: Served) -> Begun:
        """See `Request.begin`."""
        number = _number(self.number)
        noisy = given_noisy(self.image[None], what="image", shape=served.image_shape).to(served.device)
        sampler = self._posterior_sampler(served, 1)
        std = given_noise_std(self.noise_std, sampler.noise_range)
        procedure = sampler.denoising(ReadAhead(noise_of(self.seed)), served.ids(number), noisy, std)
        return self._begun(served, procedure, sampler.levels, sampler.num_gradients(std), number)


def noise_range(model: Model) -> tuple[float, float] | None:
    """Bounds of the noise of images that a model can denoise, in grey levels of 255; None if it can denoise none."""
    try:
        smallest, largest = build_posterior_sampler(model.experiment, 1, model.network.curvature).noise_range
    except UserError:
        # A request to denoise says why.
        return None
    return smallest * GREY_LEVELS, largest * GREY_LEVELS


def _number(number: int) -> int:
    return whole("number", number, f"0 to {MAX_NUMBER}", 0, MAX_NUMBER)
