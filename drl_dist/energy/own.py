"""A torch module of the user's as an energy: what the engine needs besides ``forward(y, t)`` is added here."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from drl_dist.energy.network import EnergyNetwork

LOG_SNR = "log_snr"
"""Name of the second argument of a ``forward`` that is given log signal-to-noise ratios instead of levels."""


class PreparedOwn(NamedTuple):
    """A module with fixed weights and levels, as a function of the image alone."""

    weights: dict[str, Tensor]
    """Parameters and buffers by name, without history where no gradients are taken."""
    given: Tensor
    """(B,) int64 levels, or log signal-to-noise ratios."""
    module: nn.Module
    dtype: torch.dtype | None
    """Of matrix products and convolutions, by autocast; that of the weights if None."""


class OwnNetwork(EnergyNetwork):
    """f(y, t) of any module that maps images (B, C, H, W) and levels (B,) to numbers (B,).

    The weights are handed to the module at each call, so that the engine can take image gradients alone, compile them
    and capture them in a CUDA graph, as it does with the built-in networks.

    Args:
        module: whose ``forward(y, t)`` gives minus the energy; if its second argument is called ``log_snr``, it gets
            log signal-to-noise ratios, float (B,), instead of the levels, int64 (B,).
        image_shape: (C, H, W).
        log_snr: (T,) log of the ratio of the data's variance in y_t to that of the noise; None if it is not needed.
        num_levels: T.
    """

    given: Tensor

    def __init__(
        self, module: nn.Module, *, image_shape: tuple[int, int, int], num_levels: int, log_snr: Tensor | None = None
    ) -> None:
        super().__init__()
        self.module, self.image_shape = module, image_shape
        given = torch.arange(num_levels) if log_snr is None else log_snr
        self.register_buffer("given", given, persistent=False)

    def effective_weights(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """See `EnergyNetwork.effective_weights`."""
        weights = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        if torch.is_grad_enabled():
            return weights
        return {name: value.detach() for name, value in weights.items()}

    def prepare(self, level: Tensor, dtype: torch.dtype | None = None, weights: Any = None) -> PreparedOwn:
        """See `EnergyNetwork.prepare`."""
        return PreparedOwn(weights or self.effective_weights(dtype), self.given[level], self.module, dtype)

    @staticmethod
    def evaluate(prepared: PreparedOwn, y: Tensor) -> Tensor:
        """See `EnergyNetwork.evaluate`."""
        weights, given, module, dtype = prepared
        with torch.autocast(y.device.type, dtype, enabled=dtype is not None, cache_enabled=False):
            raw = functional_call(module, weights, (y, given))
        return raw if dtype is None else raw.to(y.dtype)


def takes_log_snr(module: nn.Module) -> bool:
    """Whether the second argument of a module's forward has the name that asks for log signal-to-noise ratios."""
    return LOG_SNR in list(inspect.signature(module.forward).parameters)[1:2]
