"""Images that all training workers generate together, and their scores as curves. Needs no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import all_gather

from drl_dist.build import build_sampler
from drl_dist.common.images import to_uint8
from drl_dist.common.progress import duration
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.sampling.progressive import shown_levels
from drl_dist.training.chain import GradientEngine
from drl_dist.training.loop import StepReport
from drl_dist.training.state import TrainState


@dataclass(frozen=True)
class Scores:
    """Scores of images generated from the averaged weights, always from the same noise; all ranks draw a share.

    Args:
        score: turns generated images, uint8 (B, C, H, W), into numbers by name.
        log: gets the step and the numbers. Both are None on ranks that only help to draw.
        look: gets the step, the images seen and the images, on every rank, before they are scored.
    """

    experiment: Experiment
    engine: EngineConfig
    every_steps: int
    num_images: int
    rank: int
    world_size: int
    score: Callable[[Tensor], dict[str, float]] | None
    log: Callable[[int, dict[str, float]], None] | None
    look: Callable[[int, int, Tensor], None] | None = None

    def on_step(self, report: StepReport, state: TrainState) -> None:
        if report.step % self.every_steps and report.step != report.num_steps:
            return
        began = time.monotonic()
        images = draw_together(
            self.experiment,
            self.engine,
            state,
            self.num_images,
            rank=self.rank,
            world_size=self.world_size,
            whole_way=False,
        )[-1]
        if self.look is not None:
            self.look(report.step, report.images_seen, images)
        if self.score is not None and self.log is not None:
            numbers = self.score(images)
            self.log(report.step, numbers)
            told = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(
                f"step {report.step}/{report.num_steps}: {told} of {self.num_images} images, drawn and scored in "
                f"{duration(time.monotonic() - began)}",
                flush=True,
            )


def draw_together(
    experiment: Experiment,
    engine: EngineConfig,
    state: TrainState,
    num_images: int,
    *,
    rank: int,
    world_size: int,
    whole_way: bool,
) -> Tensor:
    """Images generated from the averaged weights, of which each rank draws a share.

    Returns:
        uint8 on the CPU, the same on every rank: (levels, num_images, C, H, W), noise first, with `whole_way`;
        (1, num_images, C, H, W) without.
    """
    model = experiment.model
    network = state.ema_network()
    device = next(network.parameters()).device
    gradients = GradientEngine(network, engine, is_frozen=True)
    sampler, noise = build_sampler(experiment), PhiloxNoise(experiment.train.seed)
    # No larger than a training batch, whose memory is known to be there.
    chunk = max(1, experiment.train.batch_size // world_size)
    share = -(-num_images // world_size)
    ids = torch.arange(rank * share, (rank + 1) * share, device=device)
    shape = (model.channels, model.resolution, model.resolution)
    keep = shown_levels(experiment.diffusion.num_levels) if whole_way else (0,)
    mine: list[Tensor] = []
    for some in ids.split(chunk):
        stages = sampler.sample_levels(gradients.raw_at, noise, some, shape, keep=keep)
        mine.append(to_uint8(stages.flatten(0, 1)).unflatten(0, (-1, len(some))))
    drawn = torch.cat(mine, dim=1).transpose(0, 1).contiguous()
    shares = [torch.empty_like(drawn) for _ in range(world_size)]
    all_gather(shares, drawn)
    return torch.cat(shares)[:num_images].transpose(0, 1).cpu()
