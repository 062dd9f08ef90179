"""Out-of-distribution detection by log-density: f(y_0, 0) of images, and the AUROC that separates two data sets."""

from __future__ import annotations

import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import draw_pairs
from drl_dist.diffusion.noise import Noise
from drl_dist.energy.network import EnergyNetwork


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve of a classifier for which high values mean "inside".

    It is the probability that a random value of `inside` exceeds a random one of `outside`, ties counting half: the
    statistic of Mann and Whitney over the number of pairs, counted exactly.

    Args:
        inside: (N,) values that should be high, any dtype.
        outside: (M,) values that should be low.

    Raises:
        ValueError: one of them is empty or holds a NaN.
    """
    if not len(inside) or not len(outside) or bool(inside.isnan().any()) or bool(outside.isnan().any()):
        raise ValueError("an AUROC needs at least one value on either side, and no NaN")
    # Compared in the wider dtype, because rounding only one side could create or remove ties.
    dtype = torch.promote_types(inside.dtype, outside.dtype)
    inside, sorted_outside = inside.to(dtype), outside.to(dtype).sort().values
    below = torch.searchsorted(sorted_outside, inside, right=False)
    not_above = torch.searchsorted(sorted_outside, inside, right=True)
    return int((below + not_above).sum()) / (2 * len(inside) * len(outside))


def log_densities(
    network: EnergyNetwork, experiment: Experiment, noise: Noise, images: Tensor, sample_ids: Tensor
) -> Tensor:
    """f(y_0, t = 0) of images, in nats, up to the network's unknown normalising constant.

    y_0 = a_1 x_0 is drawn as in training: x_0 is the image with the small noise of the ladder's first step, without
    which pixels would lie on a grid that the network has never seen.

    Args:
        network: the experiment's network in evaluation mode, on the device of the images.
        experiment: defines y_0 and the scale of the network's output.
        noise: source of the noise in x_0.
        images: uint8 (B, C, H, W).
        sample_ids: (B,) int64, keys of the noise.

    Returns:
        (B,) float64 on the CPU.
    """
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    level = torch.zeros_like(sample_ids)
    x = to_unit_range(images)
    y = draw_pairs(noise, sample_ids, x, level, ladder, levels.transition_scale).y_pos
    with torch.no_grad():
        raw = network(y, level)
    return raw.double().cpu() * levels.energy_scale[0]
