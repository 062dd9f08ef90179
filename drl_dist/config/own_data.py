"""Rules of thumb that make an experiment for images of any kind from their size and their number.

Two points of these rules are measured, `digits` (8x8) and `fashion_mnist` (32x32) of `drl_dist.config.presets`; the
widths of larger images are those of Table 6 and of the U-Nets that the presets have for them. In between, and beyond,
they are a place to begin, not an optimum: every field can be given otherwise. docs/training.md has them as a table.
"""

from __future__ import annotations

import math

from drl_dist.common.errors import UserError
from drl_dist.config.presets import Row, UNetRow, experiment_of, in_setting
from drl_dist.config.tree import Experiment

OWN = "own"
"""Experiments of these rules are recorded under this name and, as presets are, their setting."""
SMALL_DIMENSION = 1024
"""Numbers in an image up to which networks are those measured on two CPU cores; `fashion_mnist` has as many."""
MAX_BOTTOM = 15
"""Largest height, in positions, of a network's lowest level: its convolutions there still see all of the image."""
MIN_BOTTOM = 4
"""Height at which networks stop halving, as all presets do."""
MAX_POSITIONS = 128
"""Largest height of a network, in positions; larger images are seen as squares of pixels."""
PATCHES_FROM = 28
"""Height in pixels from which small networks see squares of them."""
FEW_IMAGES = 10_000
"""Below this number, colour images get a network of half the width and half the height: a larger one memorises more of
them, and costs sixteen times as much."""
TABLE_6_MULTIPLIERS = (1, 2, 2, 2, 4, 4)
"""Its networks have the first of these, one a level; further levels are as wide as the last."""


def experiment_for(
    *, resolution: int, channels: int, num_images: int, setting: str = "unet", is_built_in: bool = True
) -> Experiment:
    """An experiment for images that no preset was made for.

    ==================  ============================================================================================
    field               rule, and where it comes from
    ==================  ============================================================================================
    levels              halved until 4 to 15 positions are left (all presets end at 4)
    width_multipliers   1, 2, 4, 8 up to 1024 numbers in an image (`digits`, `fashion_mnist`), else Table 6's
    width, N            up to 1024 numbers 24 and 1, or 16 and 1 with patches (measured); else 64 and 2 as the presets
                        have, and 32 and 2 for fewer than 10,000 images
    patch_size          2 from 28 pixels on for up to 1024 numbers (`fashion_mnist`) and for fewer than 10,000 images,
                        which seldom have a large machine; larger where more than 128 positions, or 64, are left
    T                   10 at 8 pixels (`digits`), one more for each doubling (`fashion_mnist`): the largest variance
                        grows with the number of pixels, and the factor between levels stays near 4
    ladder's ends       the data's: see `drl_dist.config.from_data`
    batch_size          32 up to 1024 numbers (measured); else 128, 64 above 128 pixels; at most a quarter of the images
    num_steps           up to 1024 numbers 1,000 for 1,800 images, growing as the cube root of their number (measured);
                        else 512 passes, as CIFAR-10's 200,000 steps are; 4,000 to 200,000
    learning_rate       2e-3 up to 2,000 steps, falling as the root of more, to 2e-4 at 200,000 (both as measured)
    ema_decay           over a hundredth of the steps, 200 to 2,000 (.995 of `digits`, .9995 of the large presets)
    matching share      78 % (`digits`, and the large presets)
    horizontal_flip     off: whether a mirrored image is one of the data, only the user knows
    ==================  ============================================================================================

    The other settings have the wide ResNet of Table 6's row of the nearest size, and as many passes as its rows make.

    Args:
        resolution: height and width of the images, in pixels; for networks that are built in 4 or more, with an odd
            part of at most 15.
        channels: 1 or 3.
        num_images: images to train on.
        setting: one of `drl_dist.config.presets.SETTINGS`.
        is_built_in: whether the network will be one of the project's, for which the widths and blocks are.

    Returns:
        The experiment, whose `preset` is ``own_unet`` or the like. What it leaves to the data is None.

    Raises:
        UserError: the resolution cannot be halved often enough, or an argument is none of those.
    """
    rules: list[tuple[str, object, str, bool]] = [
        ("channels of the images", channels, "1 or 3", channels in (1, 3)),
        ("number of images", num_images, "at least 1", num_images >= 1),
        ("resolution of the images", resolution, "at least 1", resolution >= 1),
    ]
    for what, got, expected, holds in rules:
        if not holds:
            raise UserError(what, got=got, expected=expected, remedy="correct it")
    if is_built_in:
        check_resolution(resolution)
    is_small = channels * resolution**2 <= SMALL_DIMENSION
    row = _small_row(resolution, channels, num_images) if is_small else _table_6_row(resolution, channels, num_images)
    unet = _small_unet(resolution, num_images) if is_small else _large_unet(resolution, num_images)
    return in_setting(experiment_of(OWN, row), setting, unet)


def check_resolution(resolution: int) -> None:
    """Return if networks of these rules can be made for images of this height and width, in pixels.

    Raises:
        UserError: they cannot; the message names the nearest sizes for which they can.
    """
    if _is_possible(resolution):
        return
    below = next((size for size in range(resolution - 1, 0, -1) if _is_possible(size)), None)
    sizes = range(max(1, resolution + 1), 2 * max(MIN_BOTTOM, resolution) + 1)
    above = next(size for size in sizes if _is_possible(size))
    nearest = str(above) if below is None else f"{below} or {above}"
    raise UserError(
        "resolution of the images",
        got=f"{resolution}, which the network cannot halve often enough",
        expected=f"{MIN_BOTTOM} or more pixels, a number of at most {MAX_BOTTOM} doubled any number of times",
        remedy=f"prepare the data with --resolution {nearest}",
    )


def _is_possible(resolution: int) -> bool:
    # The odd part: the lowest bit that is set divides it out.
    return resolution >= MIN_BOTTOM and resolution // (resolution & -resolution) <= MAX_BOTTOM


def _num_levels(positions: int) -> int:
    """Levels of a network of this height, in positions."""
    levels = 1
    while positions % 2 == 0 and positions // 2 >= MIN_BOTTOM:
        positions, levels = positions // 2, levels + 1
    return levels


def _table_6_multipliers(positions: int) -> tuple[int, ...]:
    levels = _num_levels(positions)
    return (TABLE_6_MULTIPLIERS + (TABLE_6_MULTIPLIERS[-1],) * levels)[:levels]


def _doubling(positions: int) -> tuple[int, ...]:
    return tuple(2**level for level in range(_num_levels(positions)))


def _noise_levels(resolution: int) -> int:
    """T: one level more for each doubling of the side beyond that of digits."""
    return 10 + max(0, round(math.log2(resolution / 8)))


def _two_digits(number: float) -> int:
    """A number of steps, rounded to two significant digits."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return round(number / unit) * unit


def _batch_size(largest: int, num_images: int) -> int:
    """The largest power of two that is at most `largest` and a quarter of the images, but 8 at least."""
    return min(largest, max(8, 1 << max(0, (num_images // 4).bit_length() - 1)))


def _schedule(num_steps: int) -> tuple[float, float]:
    """Learning rate and decay of the moving average for a number of steps."""
    rate = 2e-3 * min(1.0, math.sqrt(2000 / num_steps))
    return float(f"{rate:.2g}"), round(1 - 1 / min(2000, max(200, num_steps / 100)), 5)


def _small_unet(resolution: int, num_images: int) -> UNetRow:
    """Between `digits` and `fashion_mnist`."""
    patch_size = 2 if resolution >= PATCHES_FROM else 1
    num_steps = _two_digits(1000 * max(1.0, num_images / 1800) ** (1 / 3))
    learning_rate, ema_decay = _schedule(num_steps)
    return UNetRow(
        width=16 if patch_size == 2 else 24,
        width_multipliers=_doubling(resolution // patch_size),
        patch_size=patch_size,
        num_res_blocks=1,
        num_levels=_noise_levels(resolution),
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        batch_size=_batch_size(32, num_images),
        num_steps=num_steps,
    )


def _large_unet(resolution: int, num_images: int) -> UNetRow:
    """As the presets of Table 6 have in the setting unet."""
    is_few = num_images < FEW_IMAGES
    patch_size, largest = (2, MAX_POSITIONS // 2) if is_few and resolution >= PATCHES_FROM else (1, MAX_POSITIONS)
    while resolution // patch_size > largest:
        patch_size *= 2
    batch_size = _batch_size(128 if resolution <= 128 else 64, num_images)
    num_steps = _two_digits(min(200_000, max(4_000, 512 * num_images / batch_size)))
    learning_rate, ema_decay = _schedule(num_steps)
    return UNetRow(
        width=32 if is_few else 64,
        width_multipliers=_table_6_multipliers(resolution // patch_size),
        patch_size=patch_size,
        num_levels=_noise_levels(resolution),
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        batch_size=batch_size,
        num_steps=num_steps,
    )


def _small_row(resolution: int, channels: int, num_images: int) -> Row:
    """The wide ResNet between those of `digits` and `fashion_mnist`."""
    batch_size = _batch_size(32, num_images)
    num_steps = _two_digits(max(1_000, 15 * num_images / batch_size))
    return Row(
        resolution=resolution,
        channels=channels,
        width=32 if resolution < PATCHES_FROM else 16,
        width_multipliers=_doubling(resolution),
        num_res_blocks=1,
        learning_rate=1.5e-3,
        warmup_steps=100 if num_steps < 10_000 else 300,
        half_life_steps=None if num_steps < 10_000 else num_steps // 4,
        ema_decay=0.99 if num_steps < 10_000 else 0.999,
        batch_size=batch_size,
        num_steps=num_steps,
        horizontal_flip=False,
    )


def _table_6_row(resolution: int, channels: int, num_images: int) -> Row:
    """The row of Table 6 for the nearest size: cifar10, lsun_church64 or lsun_church128."""
    num_res_blocks, largest_batch, beta1 = (8, 256, 0.9) if resolution <= 32 else (2, 128, 0.9)
    if resolution > 64:
        largest_batch, beta1 = 64, 0.5
    batch_size = _batch_size(largest_batch, num_images)
    most = 240_000 if resolution <= 32 else 840_000
    return Row(
        resolution=resolution,
        channels=channels,
        width=128 if num_images >= FEW_IMAGES else 64,
        width_multipliers=_table_6_multipliers(resolution),
        num_res_blocks=num_res_blocks,
        beta1=beta1,
        batch_size=batch_size,
        # CIFAR-10's passes, which the larger rows do not reach with their many images.
        num_steps=_two_digits(min(most, max(10_000, 1200 * num_images / batch_size))),
        horizontal_flip=False,
    )
