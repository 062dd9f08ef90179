"""The U-Net of `drl_dist.energy.unet` as a denoiser, for the baseline: the same network without an energy."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.quality.ddpm import kept_signal
from drl_dist.build import unet_sizes
from drl_dist.config.tree import ModelConfig
from drl_dist.energy.unet import EnergyUNet, apply_unet


class NoiseUNet(EnergyUNet):
    """h(y, t), which starts as the function that is 0.

    Args:
        model: sizes; what else it says is for energies.
        seed: of the initial weights.
    """

    def __init__(self, model: ModelConfig, seed: int) -> None:
        kept = kept_signal()
        super().__init__(
            **unet_sizes(model),
            noise_std=(1 - kept).sqrt(),
            signal_std=kept.sqrt(),
            generator=torch.Generator().manual_seed(seed),
        )
        self.float()

    def forward(
        self, y: Tensor, level: Tensor, dtype: torch.dtype | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Noisy images (B, C, H, W) and their levels (B,) of the baseline's ladder -> (B, C, H, W)."""
        return apply_unet(self.prepare(level, dtype, None, condition), y)
