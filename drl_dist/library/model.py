"""A trained model that samples, scores, edits and saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from drl_dist.build import build_posterior_sampler, build_sampler
from drl_dist.common.images import to_uint8, to_unit_range
from drl_dist.common.progress import progress
from drl_dist.library.arguments import check, noise_of, whole
from drl_dist.library.engine import check_finite, fixed_sums, with_labelled_progress
from drl_dist.library.images import Images, given_images, given_mask, given_noise_std, given_noisy
from drl_dist.library.scoring import ScoringModel
from drl_dist.sampling.composition import LabelledRawAtLevel
from drl_dist.sampling.inpainting import ObservedPixels, PosteriorSampler
from drl_dist.sampling.interpolation import InterpolatedNoise
from drl_dist.sampling.labels import Wanted, wanted

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment

Draw = Callable[[LabelledRawAtLevel, Tensor], Tensor]
"""(network, sample ids (B,)) -> images (B, C, H, W) of about [-1, 1]."""
Labels: TypeAlias = str | Sequence[str] | None
"""Names of labels, of which images take turns."""


class Model(ScoringModel):
    """A trained energy-based model, from `drl_dist.load` or `drl_dist.train`.

    Images go in as tensors or arrays (N, C, H, W), or (N, H, W) of one channel, uint8 or floating point in [0, 1], and
    come out as uint8 tensors (N, C, H, W) on the CPU. Every image is a function of the seed and of its number alone; on
    one kind of device, with the same `batch_size` and number of threads, it is the same bit for bit.

    Args:
        experiment: that the model was trained by.
        weights: averaged weights by name, float32 tensors or arrays, as a checkpoint keeps them.
        step: training steps made.
        device: where it computes.
        data: what is known of the data that it was trained on, for its model card.

    Raises:
        UserError: the device cannot be used.
    """

    def sample(
        self,
        num_images: int,
        *,
        labels: Labels = None,
        compose: str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        num_chain_steps: int | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Generated images, uint8 (num_images, C, H, W): image i is the one that `jobs/sample.py` makes of a seed.

        Args:
            num_images: how many.
            labels: of a model that knows labels (docs/labels.md): names, of which images take turns, as a sequence or
                as the text of ``--label``; or ``"uniform"``, for all classes in turn.
            compose: a sum of energies instead, as of ``--compose``.
            guidance: w of (1 + w) f(y, c) - w f(y); by default 0.
            seed: keys all noise, in [0, 2**63).
            num_chain_steps: K, chain steps of every level; by default the model's own.
            batch_size: images that are computed together.

        Raises:
            UserError: an argument cannot be used, or the model makes images that are not finite.
        """
        num_images = whole("num_images", num_images, "at least 1", 1)
        sampler, noise = build_sampler(self._with_steps(num_chain_steps), self.network.curvature), noise_of(seed)
        asked = self._wanted(labels, guidance, compose, num_images)

        def draw(network: LabelledRawAtLevel, ids: Tensor) -> Tensor:
            return sampler.sample(asked.raw_at(network, ids, noise), noise, ids, self.image_shape)

        return self._draw("sampling", torch.arange(num_images), draw, sampler.num_gradients, batch_size, asked)

    def interpolate(
        self,
        first: int,
        second: int,
        num_images: int,
        *,
        labels: Labels = None,
        guidance: float | None = None,
        seed: int = 0,
        num_chain_steps: int | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """A row of images from one generated image to another, uint8 (num_images, C, H, W).

        Every image between the two has exactly the distribution of a generated image. The ends are the images of
        `sample` with these numbers, and with 0 and 1 the row is the first one of ``jobs/interpolate.py``.

        Args:
            first, second: numbers of the two images of this seed, 0 or more.
            num_images: images of the row, both ends included; at least 2.
            labels, guidance: as of `sample`, of which the row has the first label.
            seed, num_chain_steps, batch_size: as of `sample`.

        Raises:
            UserError: as `sample`.
        """
        first, second = (whole("first and second", end, "two different numbers from 0", 0) for end in (first, second))
        check("first and second", (first, second), "two different numbers from 0", first != second)
        num_images = whole("num_images", num_images, "at least 2, for both ends", 2)
        sampler = build_sampler(self._with_steps(num_chain_steps), self.network.curvature)
        ends = torch.tensor([first, second], device=self.device)
        weights = torch.linspace(0, 1, num_images, dtype=torch.float64, device=self.device)
        noise = InterpolatedNoise(noise_of(seed), ends[:1], ends[1:], weights)
        asked = self._wanted(labels, guidance)

        def draw(network: LabelledRawAtLevel, ids: Tensor) -> Tensor:
            raw_at = asked.raw_at(network, torch.zeros_like(ids), noise_of(seed))
            return sampler.sample(raw_at, noise, ids, self.image_shape)

        return self._draw("interpolating", torch.arange(num_images), draw, sampler.num_gradients, batch_size, asked)

    def inpaint(
        self,
        images: Images,
        mask: Images,
        *,
        labels: Labels = None,
        guidance: float | None = None,
        seed: int = 0,
        num_rounds: int = 4,
        num_chain_steps: int | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Images whose hidden pixels are filled in, uint8 (N, C, H, W); the others are those of the images.

        The results are the first ones of ``jobs/inpaint.py``; another seed gives other ones.

        Args:
            images: (N, C, H, W) or (N, H, W); hidden pixels are not looked at.
            mask: bool (H, W), (N, H, W) or (N, 1, H, W), true where a pixel is to be filled in.
            labels, guidance: as of `sample`.
            seed: keys all noise.
            num_rounds: runs of each level's chain; 1 is the paper's procedure, more are nearer to the right
                distribution.
            num_chain_steps, batch_size: as of `sample`.

        Raises:
            UserError: as `sample`.
        """
        given = given_images(images, shape=self.image_shape).to(self.device)
        hidden = given_mask(mask, count=len(given), resolution=self.image_shape[1]).to(self.device)
        observed = (~hidden).expand(len(given), -1, -1, -1)
        sampler, noise = self._posterior_sampler(num_rounds, num_chain_steps), noise_of(seed)
        asked = self._wanted(labels, guidance, None, len(given))

        def draw(network: LabelledRawAtLevel, ids: Tensor) -> Tensor:
            raw_at = asked.raw_at(network, ids, noise)
            return sampler.complete(raw_at, noise, ids, to_unit_range(given[ids]), ObservedPixels(observed[ids]))

        return self._draw("inpainting", torch.arange(len(given)), draw, sampler.num_gradients(), batch_size, asked)

    def denoise(
        self,
        images: Images,
        noise_std: float,
        *,
        labels: Labels = None,
        guidance: float | None = None,
        seed: int = 0,
        num_chain_steps: int | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Draws of images given the same with white Gaussian noise, uint8 (N, C, H, W).

        Args:
            images: (N, C, H, W) or (N, H, W) with the noise. Floating-point pixels may lie outside [0, 1]: clipping
                them would change the noise.
            noise_std: standard deviation of the noise, in grey levels of 255.
            labels, guidance: as of `sample`.
            seed, num_chain_steps, batch_size: as of `sample`.

        Raises:
            UserError: as `sample`; or there is less noise than at the lowest level of the model, or more than in its
                prior.
        """
        noisy = given_noisy(images, what="images", shape=self.image_shape).to(self.device)
        sampler, noise = self._posterior_sampler(1, num_chain_steps), noise_of(seed)
        std = given_noise_std(noise_std, sampler.noise_range)
        asked = self._wanted(labels, guidance, None, len(noisy))

        def draw(network: LabelledRawAtLevel, ids: Tensor) -> Tensor:
            return sampler.denoise(asked.raw_at(network, ids, noise), noise, ids, noisy[ids], std)

        return self._draw("denoising", torch.arange(len(noisy)), draw, sampler.num_gradients(std), batch_size, asked)

    def _posterior_sampler(self, num_rounds: int, num_chain_steps: int | None) -> PosteriorSampler:
        num_rounds = whole("num_rounds", num_rounds, "at least 1", 1)
        return build_posterior_sampler(self._with_steps(num_chain_steps), num_rounds, self.network.curvature)

    def _with_steps(self, num_chain_steps: int | None) -> Experiment:
        """The experiment, whose config is checked anew, with K as it was asked for."""
        if num_chain_steps is None:
            return self._experiment
        num_chain_steps = whole("num_chain_steps", num_chain_steps, "at least 1", 0)
        mcmc = dataclasses.replace(self._experiment.mcmc, sampling_chain_steps=num_chain_steps)
        return dataclasses.replace(self._experiment, mcmc=mcmc)

    def _wanted(
        self, labels: Labels, guidance: float | None, compose: str | None = None, num_images: int | None = None
    ) -> Wanted:
        """What the arguments of `sample` ask for."""
        if labels is not None and not isinstance(labels, str):
            labels = ",".join(f'"{name}"' for name in labels)
        is_uniform = labels == "uniform"
        return wanted(
            self._experiment.condition,
            label=None if is_uniform else labels,
            labels="uniform" if is_uniform else None,
            compose=compose,
            guidance=guidance,
            num_images=num_images,
        )

    def _draw(self, what: str, ids: Tensor, draw: Draw, num_gradients: int, batch_size: int, asked: Wanted) -> Tensor:
        """The images of these ids, batch by batch; uint8 on the CPU."""
        batch_size = whole("batch_size", batch_size, "at least 1", 1)
        made: list[Tensor] = []
        total = len(ids) * num_gradients * asked.num_energies
        with fixed_sums(), progress(what, total, 0, "chain steps") as advance:
            network = with_labelled_progress(self._engine.raw_at, advance)
            for batch in ids.to(self.device).split(batch_size):
                images = draw(network, batch)
                check_finite(
                    images,
                    f"images {int(batch[0])} to {int(batch[-1])}",
                    remedy="use an earlier checkpoint, or one that was trained at a lower learning rate",
                )
                made.append(to_uint8(images).cpu())
        return torch.cat(made)
