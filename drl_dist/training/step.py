"""One training step (Algorithm 1): draw pairs, run the chain, update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, is_initialized
from torch.nn.parallel import DistributedDataParallel

from drl_dist.config import EngineConfig, Experiment
from drl_dist.diffusion import Pairs, draw_levels, draw_pairs
from drl_dist.evaluation.grids import to_unit_range
from drl_dist.mcmc.kernel import KeyedChainNoise, root_mean_square, run_chain
from drl_dist.mcmc.langevin import UnadjustedLangevin
from drl_dist.noise import PhiloxNoise, Purpose
from drl_dist.recipe import build_ladder, build_levels
from drl_dist.recovery import conditional_density, recovery_loss, scaled_density
from drl_dist.training.batch import Batch
from drl_dist.training.chain import GradientEngine
from drl_dist.training.guard import DivergedError, all_finite
from drl_dist.training.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What one step says about itself, averaged over all ranks; on the device until somebody reads it."""

    loss: Tensor
    """() weighted recovery loss."""
    grad_norm: Tensor
    """() norm of the gradient before clipping."""
    per_level: Tensor
    """(4, T): sums of log-density of y_pos, of y_neg, of displacement, and the number of samples."""
    learning_rate: float

    def metrics(self) -> dict[str, float]:
        """Named numbers; levels that no sample of this step fell on are left out. Log-densities are in nats."""
        positive, negative, displacement, count = self.per_level.double().cpu()
        numbers = {
            "loss": float(self.loss),
            "grad_norm": float(self.grad_norm),
            "learning_rate": self.learning_rate,
        }
        for t in count.nonzero().flatten().tolist():
            numbers[f"log_density_pos/level_{t}"] = float(positive[t] / count[t])
            numbers[f"log_density_neg/level_{t}"] = float(negative[t] / count[t])
            numbers[f"log_density_gap/level_{t}"] = float((positive[t] - negative[t]) / count[t])
            numbers[f"displacement/level_{t}"] = float(displacement[t] / count[t])
        return numbers


class _Forward(nn.Module):
    """The update's forward as a module, so that DDP can wrap it."""

    def __init__(self, engine: GradientEngine) -> None:
        super().__init__()
        self.network = engine.network
        self._engine = engine

    def forward(self, y: Tensor, level: Tensor) -> Tensor:
        return self._engine.forward(y, level)


class TrainStep:
    """Algorithm 1 on one rank; with torch.distributed initialised, gradients are averaged over all ranks.

    Args:
        state: changed in place by each call.
        experiment: the science.
        engine: how it is computed.
    """

    def __init__(self, state: TrainState, experiment: Experiment, engine: EngineConfig) -> None:
        self.state, self.experiment = state, experiment
        weight = state.network.stem.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.ladder = build_ladder(experiment.diffusion)
        self.levels = build_levels(experiment, self.ladder).to(self.device, self.dtype)
        self.noise = PhiloxNoise(experiment.train.seed)
        self.gradients = GradientEngine(state.network, engine)
        self.forward: nn.Module = _Forward(self.gradients)
        if is_initialized():
            # Buffers hold only power-iteration vectors, which every rank advances alike.
            self.forward = DistributedDataParallel(
                self.forward,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def __call__(self, batch: Batch) -> StepResult:
        """Make one step on this rank's share of the batch.

        Raises:
            DivergedError: loss or gradient is not finite on some rank; nothing was updated on any.
        """
        self.state.network.advance_power_iteration()
        positions = batch.positions.to(self.device, non_blocking=True)
        pairs = self.draw(batch.images, positions)
        y_neg = self.run_chain(pairs, positions)
        return self.update(pairs, y_neg)

    def draw(self, images: Tensor, positions: Tensor) -> Pairs:
        """Levels and pairs for uint8 images (B, C, H, W) at stream positions (B,)."""
        x = to_unit_range(images.to(self.device, non_blocking=True)).to(self.dtype)
        level = draw_levels(self.noise, positions, self.levels.num_levels)
        return draw_pairs(self.noise, positions, x, level, self.ladder, self.levels.transition_scale)

    def run_chain(self, pairs: Pairs, positions: Tensor) -> Tensor:
        """y_neg (B, C, H, W): K Langevin steps from x_noisy, exactly K gradients, all with respect to y."""
        here = self.levels.at(pairs.level)
        density = conditional_density(
            scaled_density(self.gradients.raw_at(pairs.level), here.energy_scale),
            pairs.x_noisy,
            here.recovery_precision,
        )
        mcmc = self.experiment.mcmc
        kernel = UnadjustedLangevin(density, here.step_size, mcmc.noise_scale)
        noise = KeyedChainNoise(
            self.noise, Purpose.TRAIN_CHAIN, positions, pairs.level, tuple(pairs.x_noisy.shape[1:]), self.dtype
        )
        with torch.no_grad():
            return run_chain(kernel, pairs.x_noisy, noise, mcmc.num_chain_steps).y

    def update(self, pairs: Pairs, y_neg: Tensor) -> StepResult:
        """One Adam step on both ends of the chain, in one forward."""
        here = self.levels.at(pairs.level)
        state, optim = self.state, self.experiment.optim
        raw = self.forward(torch.cat([pairs.y_pos, y_neg]), torch.cat([pairs.level, pairs.level]))
        raw_pos, raw_neg = raw.chunk(2)
        loss = recovery_loss(raw_pos, raw_neg, here.loss_weight)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(state.network.parameters())
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not all_finite(torch.stack([loss.detach(), grad_norm])):
            raise DivergedError(state.step, float(loss), float(grad_norm))
        if optim.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, optim.max_grad_norm, grad_norm)
        # Step 0 has learning rate 0 in the released code; starting at 1 / warmup_steps wastes no step.
        learning_rate = optim.learning_rate * min(1.0, (state.step + 1) / max(1, optim.warmup_steps))
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        state.optimizer.step()
        state.ema.update(state.network)
        state.step += 1
        return self._result(pairs, y_neg, loss.detach(), grad_norm, raw_pos.detach(), raw_neg.detach(), learning_rate)

    def _result(
        self,
        pairs: Pairs,
        y_neg: Tensor,
        loss: Tensor,
        grad_norm: Tensor,
        raw_pos: Tensor,
        raw_neg: Tensor,
        learning_rate: float,
    ) -> StepResult:
        here = self.levels.at(pairs.level)
        rows = torch.stack(
            [
                raw_pos * here.energy_scale,
                raw_neg * here.energy_scale,
                root_mean_square(y_neg - pairs.x_noisy).to(raw_pos.dtype),
                torch.ones_like(raw_pos),
            ]
        )
        sums = torch.zeros(4, self.levels.num_levels, dtype=rows.dtype, device=rows.device)
        sums.index_add_(1, pairs.level, rows)
        if is_initialized():
            packed = torch.cat([sums.flatten(), loss[None].to(sums.dtype) / torch.distributed.get_world_size()])
            all_reduce(packed)
            sums, loss = packed[:-1].reshape(sums.shape), packed[-1]
        return StepResult(loss, grad_norm, sums, learning_rate)
