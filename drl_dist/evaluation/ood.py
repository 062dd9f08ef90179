"""Telling strange images by their log-density: f(y_0, 0) of two data sets, and how well it parts them."""

from __future__ import annotations

import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import draw_pairs
from drl_dist.diffusion.noise import Noise
from drl_dist.energy.wide_resnet import WideResNet


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The area under the ROC curve of a rule that calls the higher value "inside".

    It is the probability that a random value of `inside` exceeds a random one of `outside`, ties counting half: the
    statistic of Mann and Whitney over the number of pairs, counted exactly.

    Args:
        inside: (N,) values of what should be high, any dtype.
        outside: (M,).

    Raises:
        ValueError: one of them is empty or holds a NaN.
    """
    if not len(inside) or not len(outside) or bool(inside.isnan().any()) or bool(outside.isnan().any()):
        raise ValueError("an AUROC needs at least one value on either side, and no NaN")
    # Both in the wider dtype: rounding one side alone could make or break ties.
    dtype = torch.promote_types(inside.dtype, outside.dtype)
    inside, sorted_outside = inside.to(dtype), outside.to(dtype).sort().values
    below = torch.searchsorted(sorted_outside, inside, right=False)
    not_above = torch.searchsorted(sorted_outside, inside, right=True)
    return int((below + not_above).sum()) / (2 * len(inside) * len(outside))


def log_densities(
    network: WideResNet, experiment: Experiment, noise: Noise, images: Tensor, sample_ids: Tensor
) -> Tensor:
    """f(y_0, t = 0) of images, in nats, up to the constant that the network leaves open.

    y_0 = a_1 x_0 is drawn as in training: x_0 is the image with the little noise of the ladder's first step, without
    which pixels lie on a grid that the network has never seen.

    Args:
        network: in evaluation mode, on the device of the images; its weights are those of the experiment.
        experiment: says what y_0 is, and the scale of the network's output.
        noise: of x_0.
        images: uint8 (B, C, H, W).
        sample_ids: (B,) int64, key the noise.

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
