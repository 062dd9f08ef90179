"""One training step (Algorithm 1): draw pairs, run the chain, update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, is_initialized
from torch.nn.parallel import DistributedDataParallel

from drl_dist.build import build_kernel, build_ladder, build_levels, curvature_bound, stiff_level
from drl_dist.common.batch import Batch
from drl_dist.common.images import to_unit_range
from drl_dist.config.rules import check_training
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.ladder import Pairs, draw_levels, draw_pairs
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.mcmc.curvature import CurvatureAlongMoves
from drl_dist.mcmc.kernel import KeyedChainNoise, StepNoise, column, run_chain
from drl_dist.mcmc.langevin import UnequalChains
from drl_dist.sampling.progressive import ProgressiveSampler, noise_before
from drl_dist.sampling.tweedie import Tweedie
from drl_dist.training.chain import GradientEngine
from drl_dist.training.guard import DivergedError, Interrupt, agree
from drl_dist.training.labels import given_labels
from drl_dist.training.objectives import Forward, Objective, make_objective
from drl_dist.training.sharded import ShardedState
from drl_dist.training.slices import backward_in_slices, joined_draws, pairs_in, slices
from drl_dist.training.state import TrainState

MAX_REPORTED_LEVELS = 16
"""Ladders of more levels are reported in this many bands of consecutive levels."""
CURVATURE_RATE = 0.05
"""Share of a step's measurement in the curvature of a level that steps are adapted to."""


@dataclass(frozen=True)
class StepResult:
    """The numbers of one step, averaged over all ranks; on the device until `metrics` reads them."""

    loss: Tensor
    """()"""
    grad_norm: Tensor
    """() norm of the gradient before clipping."""
    names: tuple[str, ...]
    """What is reported of each level."""
    per_level: Tensor
    """(len(names) + 1, T): sums over the samples of each level, and last their number."""
    learning_rate: float
    bad_samples: Tensor | float = 0.0
    """() damaged images of this step that were replaced; a sum over all ranks."""
    interrupt: Interrupt = Interrupt.NONE
    """What is to happen now, the same on all ranks."""

    def metrics(self) -> dict[str, float]:
        """Named numbers; levels that no sample of this step fell on are left out. Log-densities are in nats.

        The one place of training where tensors become floats: all of them together, which waits for the device once.
        """
        table = self.per_level.double()
        scalars = torch.stack(
            [
                torch.as_tensor(one, dtype=table.dtype, device=table.device)
                for one in (self.loss, self.grad_norm, self.bad_samples)
            ]
        )
        packed, bands = torch.cat([scalars, table.flatten()]).cpu(), level_bands(table.shape[1])
        table = packed[len(scalars) :].view_as(table)
        sums = torch.stack([table[:, levels].sum(1) for levels in bands.values()])
        loss, grad_norm, bad_samples, *flat = torch.cat([packed[: len(scalars)], sums.flatten()]).tolist()
        numbers = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": self.learning_rate,
            "bad_samples": bad_samples,
        }
        width = len(self.names) + 1
        for row, label in enumerate(bands):
            *values, samples = flat[row * width : (row + 1) * width]
            if samples:
                for name, value in zip(self.names, values, strict=True):
                    numbers[f"{name}/level_{label}"] = value / samples
        return numbers


def learning_rate_at(experiment: Experiment, step: int) -> float:
    """Learning rate of the update that follows `step` updates: warm-up, then constant, halving or along a cosine; and
    the factor that comes with a switch to another objective.
    """
    optim = experiment.optim
    # Step 0 has learning rate 0 in the released code; starting at 1 / warmup_steps wastes no step.
    warm = min(1.0, (step + 1) / max(1, optim.warmup_steps))
    halvings = max(0, step + 1 - optim.warmup_steps) / optim.half_life_steps if optim.half_life_steps else 0.0
    is_switched = optim.first_objective is not None and step >= optim.first_objective_steps
    rate = optim.learning_rate * warm * 0.5**halvings * (optim.switch_rate_factor if is_switched else 1.0)
    share = min(1.0, step / experiment.train.num_steps)
    return rate * (optim.final_rate_factor + (1 - optim.final_rate_factor) * (1 + math.cos(math.pi * share)) / 2)


def level_bands(num_levels: int) -> dict[str, slice]:
    """Levels by the label of their metrics: each by its number, or in bands like ``000-062`` of a long ladder."""
    if num_levels <= MAX_REPORTED_LEVELS:
        return {str(t): slice(t, t + 1) for t in range(num_levels)}
    ends = [num_levels * band // MAX_REPORTED_LEVELS for band in range(MAX_REPORTED_LEVELS + 1)]
    digits = len(str(num_levels - 1))
    return {f"{low:0{digits}}-{high - 1:0{digits}}": slice(low, high) for low, high in pairwise(ends)}


class TrainStep:
    """Algorithm 1 on one rank; with torch.distributed initialised, gradients are averaged over all ranks.

    Args:
        state: changed in place by each call; whole, or a `ShardedState`, whichever `engine.shard` says.
        experiment: the science.
        engine: how it is computed. Memory auto is plain here: `drl_dist.training.memory.fit_memory` chooses.
        request: asked at each step; what this rank wants to happen after it.
        noise_seed: of levels, pairs and chains; by default the experiment's seed.
        is_alone: other ranks know nothing of this step, of which `negatives`, `backward` and `advance` may be called.

    Raises:
        UserError: the experiment can only be sampled from.
    """

    def __init__(
        self,
        state: TrainState,
        experiment: Experiment,
        engine: EngineConfig,
        request: Callable[[], Interrupt] = lambda: Interrupt.NONE,
        noise_seed: int | None = None,
        *,
        is_alone: bool = False,
    ) -> None:
        check_training(experiment)
        self._num_ranks = torch.distributed.get_world_size() if is_initialized() and not is_alone else None
        """Of torch.distributed, if this step is made together with others."""
        self.state, self.experiment, self.engine, self.request = state, experiment, engine, request
        self.device, self.dtype = state.network.device, state.network.dtype
        self.ladder = build_ladder(experiment.diffusion)
        levels = build_levels(experiment, self.ladder)
        self.levels = levels.to(self.device, self.dtype)
        self._ladder_here = self.ladder.to(self.device)
        stiff = stiff_level(experiment, self.ladder)
        if stiff and not (is_initialized() and torch.distributed.get_rank()):
            warnings.warn(stiff, RuntimeWarning, stacklevel=2)
        mcmc = experiment.mcmc
        start = Tweedie(self.levels, self._ladder_here) if mcmc.start == "tweedie" else None
        num_chain_steps = mcmc.level_chain_steps or mcmc.num_chain_steps
        self.sampler = ProgressiveSampler(
            self.levels,
            num_chain_steps,
            mcmc.noise_scale,
            start,
            averages_noise=mcmc.kernel == "leimkuhler_matthews",
            own_kernel=build_kernel(mcmc.kernel),
        )
        self.num_draws = torch.tensor(self.sampler.num_draws, device=self.device)
        """(T,) transitions at each level, after the start."""
        self._bound: Tensor | None = None
        if mcmc.step_rule == "bound" and min(mcmc.chain_steps) >= 2:
            bound = curvature_bound(self.ladder, levels.transition_scale, levels.recovery_precision)
            self._bound = bound.to(self.device, self.dtype)
        self.noise = PhiloxNoise(experiment.train.seed if noise_seed is None else noise_seed)
        self.gradients = GradientEngine(state.network, engine)
        self._objective_name = experiment.optim.objective_at(state.step)
        self.objective, self.forward = self._made(self._objective_name)

    def __call__(self, batch: Batch) -> StepResult:
        """Make one step on this rank's share of the batch.

        Raises:
            DivergedError: loss or gradient is not finite on some rank; nothing was updated on any.
        """
        pairs, y_neg, meter = self.negatives(batch)
        return self.update(pairs, y_neg, batch.bad_samples, meter)

    def negatives(self, batch: Batch) -> tuple[Pairs, Tensor | None, CurvatureAlongMoves | None]:
        """The first part of a step: pairs, the ends of their chains as `run_chain` gives them, and what was measured
        along them; None for what the objective does without."""
        self._follow_schedule()
        self.state.gather()
        self.state.network.advance_power_iteration()
        positions = batch.positions.to(self.device, non_blocking=True)
        pairs = self.draw(batch.images, positions, batch.labels)
        if not self.objective.needs_negatives:
            return pairs, None, None
        ends, meters = list[Tensor](), list[CurvatureAlongMoves]()
        parts = slices(len(positions), self.engine.chain_images)
        for where in parts:
            mine = pairs_in(pairs, where)
            meter = None if self._bound is None else CurvatureAlongMoves(self.levels.at(mine.level))
            ends.append(self.run_chain(mine, positions[where], meter))
            meters += [] if meter is None else [meter]
        whole = CurvatureAlongMoves.joined(self.levels.at(pairs.level), meters) if meters else None
        return pairs, joined_draws(ends, [where.stop - where.start for where in parts]), whole

    def draw(self, images: Tensor, positions: Tensor, labels: Tensor | None = None) -> Pairs:
        """Levels and pairs for uint8 images (B, C, H, W) at stream positions (B,), labelled as in `Batch.labels`."""
        x = to_unit_range(images.to(self.device, non_blocking=True)).to(self.dtype)
        level = draw_levels(self.noise, positions, self.levels.num_levels)
        pairs = draw_pairs(self.noise, positions, x, level, self._ladder_here, self.levels.transition_scale)
        return replace(pairs, condition=given_labels(self.experiment.condition, self.noise, positions, labels))

    def run_chain(self, pairs: Pairs, positions: Tensor, meter: CurvatureAlongMoves | None = None) -> Tensor:
        """y_neg (B, C, H, W), a sample of y_t given x_noisy: K Langevin steps from x_noisy, exactly K gradients, all
        with respect to y, and one more for a start by Tweedie's formula; for K = 0 one draw from the normal
        approximation, which takes one gradient. Where levels differ in K, a chain stays where it is after its own.

        Antithetic draws come as (2B, C, H, W), the opposite ones behind the others, and deviate from their means as
        the positives do from theirs. Any joint law of y_pos and y_neg will do for the learning gradient, which is a
        difference of two expectations; in this one it has least noise.

        Args:
            pairs: their x_noisy is where the chains come from.
            positions: (B,) in the stream of samples, which key the noise.
            meter: measures the curvature along the chains.
        """
        y, shape = pairs.x_noisy, tuple(pairs.x_noisy.shape[1:])
        raw_at = self.gradients.with_labels(pairs.condition)
        if self.sampler.start is not None:
            normal = self.noise.normal(Purpose.TRAIN_START, positions, pairs.level, (0,), shape)[0].to(self.dtype)
            # Before the chain's kernel is made: a captured graph holds one set of levels.
            y = self.sampler.start.draw(raw_at, y, pairs.level, self.sampler.noise_scale * normal)
        averages, purpose = self.sampler.averages_noise, Purpose.TRAIN_BEFORE
        before = noise_before(averages, self.noise, purpose, positions, pairs.level, shape, dtype=self.dtype)
        network, sampler = raw_at(pairs.level), self.sampler
        if meter is not None:
            network = meter.watching(network)
        if self.state.network.curvature is not None:
            sampler = replace(sampler, levels=self.levels.shortened(self.state.network.curvature))
        kernel = sampler.kernel(network, pairs.x_noisy, pairs.level, before)
        with torch.no_grad():
            if self.experiment.mcmc.antithetic:
                normal = pairs.standardised_y_pos(self._ladder_here)
                y_neg = kernel(kernel.init(pairs.x_noisy), StepNoise(normal, normal.new_empty(len(normal), 0)))[0].y
                spread = column(self.levels.at(pairs.level).normal_std, y_neg)
                return torch.cat([y_neg, y_neg - 2 * self.sampler.noise_scale * spread * normal])
            noise = KeyedChainNoise(self.noise, Purpose.TRAIN_CHAIN, positions, pairs.level, shape, self.dtype)
            most = max(self.sampler.num_draws)
            if min(self.sampler.num_draws) < most:
                kernel = UnequalChains(kernel, self.num_draws[pairs.level], kernel.num_uniforms)
            return run_chain(kernel, y, noise, most).y

    def update(
        self, pairs: Pairs, y_neg: Tensor | None, bad_samples: int = 0, meter: CurvatureAlongMoves | None = None
    ) -> StepResult:
        """One Adam step.

        Args:
            y_neg: from `run_chain`; None for an objective without negatives.
            bad_samples: images of this rank that replace damaged ones; reported as they are.
            meter: that measured the chains' curvature, which is reported, and followed if steps are adapted to it.
        """
        loss, grad_norm, reported = self.backward(pairs, y_neg, meter)
        is_finite, interrupt = agree(torch.stack([loss, grad_norm]), self.request())
        if not is_finite:
            raise DivergedError(self.state.step, float(loss), float(grad_norm))
        learning_rate = self.advance(grad_norm)
        return self._result(pairs.level, reported, loss, grad_norm, learning_rate, bad_samples, interrupt)

    def backward(
        self, pairs: Pairs, y_neg: Tensor | None, meter: CurvatureAlongMoves | None = None
    ) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """The first half of `update`: the gradient of every parameter.

        Returns:
            the loss () without its gradient, the norm () of the gradient, and what is reported of each sample, (B,).
        """
        self._follow_schedule()
        factor = 1.0
        if self._num_ranks is not None:
            # Gradients are averaged over ranks: one with more images than others counts for more. 1 with even shares.
            factor = len(pairs.level) * self._num_ranks / self.experiment.train.batch_size
        # Before the forward, whose activations then have their place.
        self.state.optimizer.zero_grad(set_to_none=True)
        loss, reported = backward_in_slices(
            self.objective, self.forward, pairs, y_neg, self.levels, at_once=self.engine.update_images, factor=factor
        )
        if meter is not None and self._bound is not None:
            reported = {**reported, "curvature": meter.curvature() / self._bound[pairs.level]}
        return loss, self.state.gradient_norm(), reported

    def advance(self, grad_norm: Tensor) -> float:
        """The second half of `update`: clip the gradient of norm `grad_norm`, (), and move weights and their average.

        Returns:
            the learning rate.
        """
        state, optim = self.state, self.experiment.optim
        if optim.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(list(state.network.parameters()), optim.max_grad_norm, grad_norm)
        learning_rate = learning_rate_at(self.experiment, state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        state.optimizer.step()
        state.ema.update(state.network)
        state.step += 1
        return learning_rate

    def _follow_schedule(self) -> None:
        """Take up the objective of the step to come; where it is another one, all ranks do so at the same step."""
        name = self.experiment.optim.objective_at(self.state.step)
        if name != self._objective_name:
            # With a wrapper of its own: DDP looks for unused parameters in image gradients, if at all.
            self._objective_name, (self.objective, self.forward) = name, self._made(name)

    def _made(self, name: str) -> tuple[Objective, nn.Module]:
        """An objective and its forward, with torch.distributed initialised wrapped by DDP or FSDP."""
        objective = make_objective(name, self.experiment, self.ladder)
        # The second derivatives of an objective of gradients keep what would be computed again.
        self.state.network.recomputes_blocks = self.engine.memory == "checkpointing" and not objective.needs_gradient
        forward = Forward(self.gradients, is_gradient=objective.needs_gradient)
        if isinstance(self.state, ShardedState):
            return objective, self.state.forward.around(forward)
        if self._num_ranks is None:
            return objective, forward
        # Of a first convolution over one channel, which lies in memory alike in either order, and is copied in no time.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Buffers hold only power-iteration vectors, which every rank advances alike, and constants.
        return objective, DistributedDataParallel(
            forward,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=objective.needs_gradient and not self.state.network.gradient_uses_all_parameters,
        )

    def _result(
        self,
        level: Tensor,
        reported: Mapping[str, Tensor],
        loss: Tensor,
        grad_norm: Tensor,
        learning_rate: float,
        bad_samples: int,
        interrupt: Interrupt,
    ) -> StepResult:
        names = (*self.objective.reports, *(("curvature",) if "curvature" in reported else ()))
        rows = torch.stack([*(reported[name] for name in names), torch.ones_like(level, dtype=self.dtype)])
        sums = torch.zeros(len(rows), self.levels.num_levels, dtype=rows.dtype, device=rows.device)
        sums.index_add_(1, level, rows)
        bad = torch.full_like(loss, bad_samples, dtype=sums.dtype)
        if is_initialized():
            mean = loss.to(sums.dtype) / torch.distributed.get_world_size()
            packed = torch.cat([sums.flatten(), torch.stack([mean, bad])])
            all_reduce(packed)
            sums, loss, bad = packed[:-2].reshape(sums.shape), packed[-2], packed[-1]
        if "curvature" in names and self.state.network.curvature is not None:
            follow(self.state.network.curvature, sums[names.index("curvature")], sums[-1])
        return StepResult(loss, grad_norm, names, sums, learning_rate, bad, interrupt)


def follow(curvature: Tensor, total: Tensor, count: Tensor) -> None:
    """Move the curvature of each level that was measured in this step towards its mean, in place.

    Args:
        curvature: (T,) over its bound.
        total: (T,) what was measured, summed over the samples of each level.
        count: (T,) how many these are.
    """
    mean = torch.where(count > 0, total / count.clamp(min=1), curvature)
    curvature.lerp_(mean.to(curvature.dtype), CURVATURE_RATE)
