"""The tasks of the inpainting job: what each observes of an image, and how the image is drawn given that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.images import to_uint8, to_unit_range
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.data.subset import images_at, representative
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.jobs.edit.masks import hidden_pixels
from drl_dist.jobs.edit.options import InpaintOptions
from drl_dist.jobs.edit.pixels import block_means, hide, with_block_means
from drl_dist.sampling.inpainting import ObservedBlockMeans, ObservedPixels, PosteriorSampler, enlarge
from drl_dist.sampling.progressive import RawAtLevel

GREY_LEVELS = 127.5
"""Grey levels in a unit of the data's scale, which is [-1, 1]."""


@dataclass(frozen=True, eq=False)
class Task:
    """A number of images of which something is observed."""

    given: Tensor
    """(N, C, H, W) uint8, what is observed, as it is shown."""
    original: Tensor | None
    """(N, C, H, W) uint8, if the job spoiled the images itself."""
    num_gradients: int
    """Gradients of the network that one result takes."""
    draw: Callable[[RawAtLevel, Tensor, Tensor], Tensor]
    """(network, images (B,), sample ids (B,)) -> results (B, C, H, W) of about [-1, 1]."""
    finish: Callable[[Tensor, Tensor], Tensor]
    """(results, images (B,)) -> uint8 (B, C, H, W) that agree with what is observed."""


def open_task(
    options: InpaintOptions,
    sampler: PosteriorSampler,
    image_shape: tuple[int, int, int],
    device: torch.device,
    *,
    is_first: bool = False,
) -> Task:
    """Read the images and see what is observed of them.

    Args:
        options: checked.
        sampler: of the model.
        image_shape: (C, H, W) of the model.
        device: of all tensors.
        is_first: take the first images, not some from all over the data.

    Raises:
        UserError: data, mask, noise or factor do not fit the model, or cannot be read.
    """
    channels, resolution, _ = image_shape
    if options.factor is not None and resolution % options.factor:
        raise UserError(
            "option --factor",
            got=options.factor,
            expected=f"a divisor of the model's resolution, {resolution}",
            remedy="choose another factor",
        )
    smaller = options.factor if options.factor is not None and options.degraded else 1
    index = open_index(options.data)
    index.check_model(resolution=resolution // smaller, channels=channels)
    images = _chosen_images(index, options.num_images, is_first=is_first).to(device)
    noise = PhiloxNoise(options.seed)
    if options.mask is not None:
        return _inpaint(options.mask, images, sampler, noise)
    if options.noise_std is not None:
        return _denoise(options.noise_std, options.degraded, images, sampler, noise)
    assert options.factor is not None
    return _super_resolve(options.factor, options.degraded, images, sampler, noise)


def _inpaint(mask: str, images: Tensor, sampler: PosteriorSampler, noise: PhiloxNoise) -> Task:
    hidden = hidden_pixels(mask, images.shape[-1], noise, torch.arange(len(images), device=images.device))

    def draw(raw_at: RawAtLevel, chosen: Tensor, sample_ids: Tensor) -> Tensor:
        observation = ObservedPixels(~hidden[chosen])
        return sampler.complete(raw_at, noise, sample_ids, to_unit_range(images[chosen]), observation)

    return Task(hide(images, hidden), images, sampler.num_gradients(), draw, lambda results, _: to_uint8(results))


def _denoise(noise_std: float, is_noisy: bool, images: Tensor, sampler: PosteriorSampler, noise: PhiloxNoise) -> Task:
    std = noise_std / GREY_LEVELS
    smallest, largest = sampler.noise_range
    if not smallest < std < largest:
        raise UserError(
            "option --noise-std",
            got=noise_std,
            expected=f"more than {smallest * GREY_LEVELS:.3g} and less than {largest * GREY_LEVELS:.4g}, the noise of "
            "the model's lowest level and of its prior",
            remedy="correct the option",
        )
    noisy = to_unit_range(images)
    if not is_noisy:
        ids = torch.arange(len(images), device=images.device)
        noisy = noisy + std * noise.normal(Purpose.DEGRADE, ids, 0, (0,), tuple(images.shape[1:]))[0]

    def draw(raw_at: RawAtLevel, chosen: Tensor, sample_ids: Tensor) -> Tensor:
        return sampler.denoise(raw_at, noise, sample_ids, noisy[chosen], std)

    original = None if is_noisy else images
    return Task(to_uint8(noisy), original, sampler.num_gradients(std), draw, lambda results, _: to_uint8(results))


def _super_resolve(factor: int, is_small: bool, images: Tensor, sampler: PosteriorSampler, noise: PhiloxNoise) -> Task:
    small = images if is_small else block_means(images, factor)
    shown = enlarge(small, factor)

    def draw(raw_at: RawAtLevel, chosen: Tensor, sample_ids: Tensor) -> Tensor:
        return sampler.complete(raw_at, noise, sample_ids, to_unit_range(shown[chosen]), ObservedBlockMeans(factor))

    def finish(results: Tensor, chosen: Tensor) -> Tensor:
        return with_block_means(results, small[chosen], factor)

    return Task(shown, None if is_small else images, sampler.num_gradients(), draw, finish)


def _chosen_images(index: ShardIndex, count: int, *, is_first: bool) -> Tensor:
    if index.num_samples < count:
        raise UserError(
            f"data {index.url} ({index.name})",
            got=f"{counted(index.num_samples, 'image')}",
            expected=f"at least {count}",
            remedy="lower --num-images",
        )
    places = np.arange(count, dtype=np.int64) if is_first else representative(index.num_samples, count)
    return images_at(index, places)
