"""A model whose every marginal density is known: data of an analytic distribution under the ladder of a setting."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.config.presets import preset
from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad
from drl_dist.energy.analytic import Gaussian, GaussianMixture
from drl_dist.likelihood.adaptation import MarginalAdaptation
from drl_dist.likelihood.marginals import Marginals
from drl_dist.mcmc.settings import AdaptationConfig


@dataclass(frozen=True)
class Oracle:
    """A distribution of the data in D dimensions, and the ladder."""

    distribution: Gaussian | GaussianMixture
    num_dims: int
    ladder: NoiseLadder
    levels: Levels

    @classmethod
    def of(
        cls, distribution: Gaussian | GaussianMixture, num_dims: int, setting: str, *, top_level: str | None = None
    ) -> Oracle:
        experiment = preset("digits", setting)
        if top_level is not None:
            mcmc = dataclasses.replace(experiment.mcmc, top_level=top_level)
            experiment = dataclasses.replace(experiment, mcmc=mcmc)
        ladder = build_ladder(experiment.diffusion)
        return cls(distribution, num_dims, ladder, build_levels(experiment, ladder))

    def x_distribution(self, t: int) -> Gaussian | GaussianMixture:
        """Of x_t."""
        return self.distribution.affine(float(self.ladder.cumulative_scale[t]), float(self.ladder.cumulative_std[t]))

    def y_distribution(self, t: int) -> Gaussian | GaussianMixture:
        """Of y_t."""
        return self.x_distribution(t).affine(float(self.levels.transition_scale[t]), 0.0)

    def log_z(self, t: int = 0) -> float:
        """Exact log Z of y_t, in nats."""
        distribution = self.y_distribution(t)
        return distribution.log_z(self.num_dims) if isinstance(distribution, Gaussian) else distribution.log_z()

    def raw_at(self, level: Tensor) -> LogDensityAndGrad:
        """As a network's output: the log-density over the energy scale."""
        t = int(level[0])
        distribution, scale = self.y_distribution(t), float(self.levels.energy_scale[t])

        def raw_and_grad(y: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = distribution.log_density_and_grad(y)
            return value / scale, gradient / scale

        return raw_and_grad

    @property
    def marginals(self) -> Marginals:
        return Marginals(self.raw_at, self.levels)

    def draws(self, t: int, count: int, seed: int = 0) -> Tensor:
        """(count, D) float64 draws of x_t."""
        distribution, ids = self.x_distribution(t), torch.arange(count)
        noise = PhiloxNoise(1000 + seed)
        normal = noise.normal(Purpose.BASE, ids, t, (0,), (self.num_dims,))[0].double()
        if isinstance(distribution, Gaussian):
            return distribution.mean + distribution.std * normal
        which = (noise.uniform(Purpose.LEVEL, ids, t, (0,), 1)[0, :, 0] * len(distribution.means)).long()
        return distribution.means[which] + distribution.std * normal

    def adaptation(self, num_chains: int = 64, num_steps: int = 20) -> MarginalAdaptation:
        return MarginalAdaptation(
            marginals=self.marginals,
            ladder=self.ladder,
            shape=(self.num_dims,),
            seed=0,
            config=AdaptationConfig(num_chains=num_chains, num_steps=num_steps),
        )

    def step_sizes(self) -> tuple[float, ...]:
        """Good ones: in proportion to the std of a normal distribution, or of a mixture's components."""
        stds = [self.x_distribution(t).std for t in range(self.levels.num_levels)]
        return tuple(0.9 * std for std in [*stds, 1.0])


def gaussian() -> Gaussian:
    return Gaussian(torch.tensor(0.3, dtype=torch.float64), 0.25)


def mixture(num_dims: int) -> GaussianMixture:
    """Two modes that x_0 parts and white noise does not."""
    side = torch.full((num_dims,), 0.3, dtype=torch.float64)
    return GaussianMixture(torch.stack([side, -side]), 0.25)
