"""Algorithm 1 on points in the plane, from the same components as for images: pairs, conditional density, chain, loss.

Maximum likelihood with short-run chains is the case T = 1: one transition turns the data into white noise, where the
chain of the only density, a marginal one, begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.errors import UserError
from drl_dist.config.tree import DiffusionConfig, Experiment, McmcConfig, ModelConfig, OptimConfig, TrainConfig
from drl_dist.diffusion.ladder import NoiseLadder, draw_levels, draw_pairs
from drl_dist.diffusion.noise import Noise, PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import Levels, recovery_loss, scaled_density
from drl_dist.energy.toy_mlp import ToyMlp
from drl_dist.mcmc.kernel import KeyedChainNoise, run_chain
from drl_dist.mcmc.langevin import UnadjustedLangevin
from drl_dist.sampling.progressive import ProgressiveSampler, RawAtLevel
from drl_dist.toy.distributions import DataDistribution
from drl_dist.training.ema import Ema

_RUNAWAY_LOSS = 1e4
"""Loss in nats beyond which training has diverged: its chains do not return to the data."""


def drl_experiment(*, seed: int, num_steps: int) -> Experiment:
    """Diffusion recovery likelihood on the T6 ladder, with scales and weights as the paper prints them.

    Of `model`, only widths, number of blocks and activation apply; `channels` and `resolution` are for images.

    Args:
        seed: seed of weights, data and noise.
        num_steps: number of training steps.

    Raises:
        UserError: the seed is negative, or there is less than 1 step.
    """
    return Experiment(
        preset="toy",
        model=ModelConfig(
            width=128,
            num_res_blocks=1,
            time_embedding_dim=32,
            time_hidden_dim=64,
            activation="silu",
            spectral_norm=False,
        ),
        diffusion=DiffusionConfig(ladder="t6", num_levels=6),
        mcmc=McmcConfig(
            num_chain_steps=30,
            step_scale_squared=0.06,
            level_scale_power=0.0,
            energy_scale="unit",
            sampling_noise_scale=1.0,
        ),
        optim=OptimConfig(learning_rate=4e-3, warmup_steps=50, ema_decay=0.99, loss_weight="none"),
        train=TrainConfig(batch_size=256, num_steps=num_steps, seed=seed, horizontal_flip=False),
    )


def short_run_experiment(*, seed: int, num_steps: int) -> Experiment:
    """Maximum likelihood with short-run chains: T = 1, so no recovery term, and K steps from white noise.

    Network, batches, steps and K are those of `drl_experiment`, so both methods cost the same. The learning rate is
    half and b**2 a sixth as large: with those of `drl_experiment`, this training diverges.

    Args, Raises: as `drl_experiment`.
    """
    experiment = drl_experiment(seed=seed, num_steps=num_steps)
    return dataclasses.replace(
        experiment,
        diffusion=dataclasses.replace(experiment.diffusion, num_levels=1),
        mcmc=dataclasses.replace(experiment.mcmc, step_scale_squared=0.01),
        optim=dataclasses.replace(experiment.optim, learning_rate=2e-3),
    )


@dataclass(frozen=True)
class ToyModel:
    """A network, with the ladder and scales that define the meaning of its output."""

    experiment: Experiment
    ladder: NoiseLadder
    levels: Levels
    """Scales of the levels, (T,) float32."""
    network: ToyMlp

    @classmethod
    def create(cls, experiment: Experiment) -> ToyModel:
        """A model with initial weights, which the seed determines."""
        ladder, model = build_ladder(experiment.diffusion), experiment.model
        network = ToyMlp(
            width=model.width,
            num_res_blocks=model.num_res_blocks,
            time_embedding_dim=model.time_embedding_dim,
            time_hidden_dim=model.time_hidden_dim,
            generator=torch.Generator().manual_seed(experiment.train.seed),
        )
        levels = build_levels(experiment, ladder).to(torch.device("cpu"), torch.float32)
        return cls(experiment, ladder, levels, network)

    def sample_levels(
        self, noise: Noise, sample_ids: Tensor, *, lengthen: int = 1, raw_at: RawAtLevel | None = None
    ) -> Tensor:
        """x_T, x_{T-1}, ..., x_0 by Algorithm 2, (T+1, B, 2).

        Args:
            noise: noise of the samples.
            sample_ids: (B,) int64.
            lengthen: factor by which every chain is longer than in training.
            raw_at: replaces the network's own method, e.g. to count gradients.
        """
        mcmc = self.experiment.mcmc
        sampler = ProgressiveSampler(self.levels, lengthen * mcmc.num_chain_steps, mcmc.sampling_noise_scale)
        return sampler.sample_levels(raw_at or self.network.raw_at, noise, sample_ids, (2,))

    def run_marginal(
        self, noise: Noise, sample_ids: Tensor, x: Tensor, num_chain_steps: int, *, raw_at: RawAtLevel | None = None
    ) -> Tensor:
        """Langevin dynamics on f(y, 0) alone, without a recovery term: the resulting x_0, (B, 2).

        Args:
            noise: noise of the chain.
            sample_ids: (B,) int64.
            x: (B, 2) x_0 at which the chain begins.
            num_chain_steps: length of the chain.
            raw_at: replaces the network's own method, e.g. to count gradients.
        """
        level = torch.zeros_like(sample_ids)
        here, scale = self.levels.at(level), self.levels.transition_scale[0]
        density = scaled_density((raw_at or self.network.raw_at)(level), here.energy_scale)
        kernel = UnadjustedLangevin(density, here.step_size, self.experiment.mcmc.sampling_noise_scale)
        numbers = KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, sample_ids, level, (2,))
        return run_chain(kernel, x * scale, numbers, num_chain_steps).y / scale


def train(
    model: ToyModel, distribution: DataDistribution, on_step: Callable[[float], None] = lambda loss: None
) -> None:
    """Train on an endless stream of points; every step sees new ones.

    The learning rate rises during warm-up and falls linearly to 0 at the end, because there are too few steps to
    average weights over many.

    Args:
        model: model with initial weights; afterwards it has the moving average of its weights.
        distribution: distribution of the data.
        on_step: called with the loss after every step, in nats.

    Raises:
        UserError: the loss diverged.
    """
    optim, config = model.experiment.optim, model.experiment.train
    noise = PhiloxNoise(config.seed)
    optimizer = torch.optim.Adam(
        model.network.parameters(), lr=optim.learning_rate, betas=(optim.beta1, optim.beta2), eps=optim.epsilon
    )
    ema = Ema(model.network, optim.ema_decay)
    for step in range(config.num_steps):
        warm = min(1.0, (step + 1) / max(1, optim.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * warm * (1 - step / config.num_steps)
        ids = torch.arange(config.batch_size) + step * config.batch_size
        loss = step_loss(model, distribution, noise, ids)
        value = float(loss.detach())
        # Written so that NaN is refused as well.
        if not abs(value) < _RUNAWAY_LOSS:
            raise UserError(
                "training",
                got=f"a loss of {value:.3g} at step {step}",
                expected=f"one within {_RUNAWAY_LOSS:.0g} nats",
                remedy="choose another --seed",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(model.network)
        on_step(value)
    model.network.load_state_dict(ema.shadow)


def step_loss(model: ToyModel, distribution: DataDistribution, noise: Noise, ids: Tensor) -> Tensor:
    """The loss of Algorithm 1, a scalar in nats: draw pairs, run the chain, compare its ends with the data.

    Args:
        model: model to train.
        distribution: distribution of the data.
        noise: noise of data, pairs and chains.
        ids: (B,) int64 sample ids of the points.
    """
    level = draw_levels(noise, ids, model.levels.num_levels)
    pairs = draw_pairs(noise, ids, distribution.sample(noise, ids), level, model.ladder, model.levels.transition_scale)
    mcmc = model.experiment.mcmc
    sampler = ProgressiveSampler(model.levels, mcmc.num_chain_steps, mcmc.noise_scale)
    kernel = sampler.kernel(model.network.raw_at(level), pairs.x_noisy, level)
    numbers = KeyedChainNoise(noise, Purpose.TRAIN_CHAIN, ids, level, (2,))
    y_neg = run_chain(kernel, pairs.x_noisy, numbers, max(sampler.num_draws)).y
    # Both in one forward pass, which halves the number of calls.
    raw_pos, raw_neg = model.network(torch.cat([pairs.y_pos, y_neg]), torch.cat([level, level])).chunk(2)
    return recovery_loss(raw_pos, raw_neg, model.levels.loss_weight[level])
