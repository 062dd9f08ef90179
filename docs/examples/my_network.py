"""A network of your own: copy it, change it, and train with ``--model.network my_network:MyNetwork``."""

import torch
from torch import Tensor, nn


class MyNetwork(nn.Module):
    """f(y, log_snr), minus the energy of noisy images, one number each.

    Args:
        channels: of the images; the project gives it, as it would ``resolution`` and ``num_levels``.
        width: from ``--model.options '{"width": 64}'``.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Linear(1, width)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(3)
        )
        self.head = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, y: Tensor, log_snr: Tensor) -> Tensor:
        """Images (N, C, H, W) with noise, and the log of their signal-to-noise ratios (N,) -> (N,)."""
        hidden = self.first(y) + self.time(log_snr[:, None] / 4)[:, :, None, None]
        for block in self.blocks:
            hidden = hidden + block(hidden)
        # A vector field times the image: its gradient is as good a field as a denoiser's. The rest is white noise.
        product = (y * self.head(nn.functional.silu(hidden))).sum((1, 2, 3))
        return torch.exp(log_snr / 2) * product - 0.5 * y.square().sum((1, 2, 3))
