"""Log-densities of images at a noise level."""

from __future__ import annotations

import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import draw_pairs
from drl_dist.diffusion.noise import Noise
from drl_dist.energy.network import EnergyNetwork


def log_densities(
    network: EnergyNetwork, experiment: Experiment, noise: Noise, images: Tensor, sample_ids: Tensor, t: int = 0
) -> Tensor:
    """f(y_t, t) of images, in nats, up to the network's unknown normalising constant.

    y_t = a_{t+1} x_t is drawn as in training. x_0 is the image with the small noise of the ladder's first step, without
    which pixels would lie on a grid that the network has never seen.

    Args:
        network: the experiment's network in evaluation mode, on the device of the images.
        experiment: defines y_t and the scale of the network's output.
        noise: source of the noise in x_t.
        images: uint8 (B, C, H, W).
        sample_ids: (B,) int64, keys of the noise.
        t: the noise level, from 0.

    Returns:
        (B,) float64 on the CPU.
    """
    ladder = build_ladder(experiment.diffusion)
    levels = build_levels(experiment, ladder)
    level = torch.full_like(sample_ids, t)
    x = to_unit_range(images)
    y = draw_pairs(noise, sample_ids, x, level, ladder, levels.transition_scale).y_pos
    with torch.no_grad():
        raw = network(y, level)
    return raw.double().cpu() * levels.energy_scale[t]
