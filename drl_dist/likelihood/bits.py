"""Dequantisation, and conversion of log-densities to bits per dimension of images with 256 grey levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import Noise, Purpose

HALF_RANGE = 127.5
"""Grey levels per unit of the data scale: x / 127.5 - 1 maps 0 to 255 to [-1, 1]."""


def dequantise(images: Tensor, noise: Noise, sample_ids: Tensor) -> Tensor:
    """Images as points in the bins of their grey levels: (image + u - 128) / 127.5, with u uniform in (0, 1).

    The mean over u of a log-density is at most the log-probability of the grey levels, which is the logarithm of that
    density integrated over their bins (Theis, van den Oord, Bethge, ICLR 2016).

    Args:
        images: uint8 (B, C, H, W).
        noise: source of u.
        sample_ids: (B,) int64.

    Returns:
        float64 (B, C, H, W) in (-128 / 127.5, 128 / 127.5); u = 1/2 gives the x of training.
    """
    uniform = noise.uniform(Purpose.DEQUANTISE, sample_ids, 0, (0,), images[0].numel())[0].reshape(images.shape)
    return (images.double() + uniform - 128) / HALF_RANGE


def noisy_x_0(x: Tensor, ladder: NoiseLadder, noise: Noise, sample_ids: Tensor) -> Tensor:
    """x_0 = a_0 x + sigma_0 e, on which the energies are trained, (B, ...) in the dtype of x.

    The mean over e of log p(x_0) is at most the logarithm of p blurred by that noise, a normalised density of a_0 x.
    """
    normal = noise.normal(Purpose.BASE, sample_ids, 0, (0,), x.shape[1:])[0].to(x.dtype)
    return float(ladder.cumulative_scale[0]) * x + float(ladder.cumulative_std[0]) * normal


def log_density_of_data(unnormalised: Tensor, log_z: float, scale: float, num_dims: int) -> Tensor:
    """log g(x) = f(y_0, 0) - log Z_0 + D log scale for y_0 = scale * x: the change of variables of section 4.2.

    The paper prints the factor as scale; for D dimensions it is scale**D.

    Args:
        unnormalised: (B,) f(y_0, 0) in nats.
        log_z: logarithm of the integral of exp f(., 0) over y_0.
        scale: factor from x to y_0: a_0 times the transition scale of level 0.
        num_dims: D.

    Returns:
        (B,) float64, nats.
    """
    return unnormalised.double() - log_z + num_dims * math.log(scale)


def bits_per_dim(log_density: Tensor | float, num_dims: int) -> Tensor:
    """-log2 p(x) / D + log2(127.5): bits per dimension of grey levels, each 1 / 127.5 wide on the data scale.

    Args:
        log_density: natural logarithm of the density of x, any shape.
        num_dims: D.
    """
    nats = torch.as_tensor(log_density, dtype=torch.float64)
    return -nats / (num_dims * math.log(2)) + math.log2(HALF_RANGE)
