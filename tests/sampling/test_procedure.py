"""Procedures use the network of one set of levels at a time, as a captured graph of it holds."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from drl_dist.build import build_posterior_sampler, build_sampler
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.sampling.inpainting import ObservedPixels
from tests.helpers.steps import tiny_unet


class OneAtATime:
    """log p(y) = -(1 + t) |y|**2 / 2, whose densities all have the levels that were last asked for."""

    def __init__(self, *, is_shared: bool) -> None:
        self.is_shared = is_shared
        self.held = torch.empty(0)

    def __call__(self, level: Tensor) -> LogDensityAndGrad:
        self.held = level

        def density(y: Tensor) -> tuple[Tensor, Tensor]:
            precision = (1 + (self.held if self.is_shared else level)).to(y.dtype)
            gradient = -precision[:, None, None, None] * y
            return 0.5 * (gradient * y).flatten(1).sum(1), gradient

        return density


def test_networks_that_hold_one_set_of_levels_give_the_same_images() -> None:
    experiment = tiny_unet()
    mcmc = dataclasses.replace(experiment.mcmc, start="tweedie", last_step="tweedie", num_chain_steps=2)
    experiment = dataclasses.replace(experiment, mcmc=mcmc)
    noise, ids, x = PhiloxNoise(2), torch.arange(3), torch.linspace(-1, 1, 192).reshape(3, 1, 8, 8)
    sampler, posterior = build_sampler(experiment), build_posterior_sampler(experiment, 2)
    observed = ObservedPixels(x < 0)
    shared, own = (
        (
            sampler.sample(raw_at, noise, ids, (1, 8, 8)),
            posterior.complete(raw_at, noise, ids, x, observed),
            posterior.denoise(raw_at, noise, ids, x, 0.4),
        )
        for raw_at in (OneAtATime(is_shared=True), OneAtATime(is_shared=False))
    )
    assert [torch.equal(*pair) for pair in zip(shared, own, strict=True)] == [True] * 3
