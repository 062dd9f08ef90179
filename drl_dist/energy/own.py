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
CONDITION = "condition"
"""Name of the third argument of a ``forward`` that is given labels."""


class PreparedOwn(NamedTuple):
    """A module with fixed weights and levels, as a function of the image alone."""

    weights: dict[str, Tensor]
    """Parameters and buffers by name, without history where no gradients are taken."""
    given: Tensor
    """(B,) int64 levels, or log signal-to-noise ratios."""
    condition: Tensor | None
    """(B, size) labels, for a module that is given any."""
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
        condition_size: numbers of a label, which ``forward(y, t, condition)`` is given as float (B, size), all zeros
            for none (`drl_dist.energy.condition`); 0 for a module without labels.
    """

    given: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        num_levels: int,
        log_snr: Tensor | None = None,
        condition_size: int = 0,
    ) -> None:
        super().__init__()
        self.module, self.image_shape, self.condition_size = module, image_shape, condition_size
        given = torch.arange(num_levels) if log_snr is None else log_snr
        self.register_buffer("given", given, persistent=False)

    def effective_weights(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """See `EnergyNetwork.effective_weights`."""
        weights = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        if torch.is_grad_enabled():
            return weights
        return {name: value.detach() for name, value in weights.items()}

    def prepare(
        self,
        level: Tensor,
        dtype: torch.dtype | None = None,
        weights: Any = None,
        condition: Tensor | None = None,
    ) -> PreparedOwn:
        """See `EnergyNetwork.prepare`."""
        if self.condition_size and condition is None:
            condition = torch.zeros(len(level), self.condition_size, device=level.device)
        return PreparedOwn(weights or self.effective_weights(dtype), self.given[level], condition, self.module, dtype)

    @staticmethod
    def evaluate(prepared: PreparedOwn, y: Tensor) -> Tensor:
        """See `EnergyNetwork.evaluate`."""
        weights, given, condition, module, dtype = prepared
        arguments = (y, given) if condition is None else (y, given, condition.to(y.dtype))
        with torch.autocast(y.device.type, dtype, enabled=dtype is not None, cache_enabled=False):
            raw = functional_call(module, weights, arguments)
        return raw if dtype is None else raw.to(y.dtype)


def takes_log_snr(module: nn.Module) -> bool:
    """Whether the second argument of a module's forward has the name that asks for log signal-to-noise ratios."""
    return LOG_SNR in list(inspect.signature(module.forward).parameters)[1:2]


def takes_condition(module: nn.Module) -> bool:
    """Whether a module can be given labels: the third argument of its forward, or the last of the ``prepare`` of an
    `EnergyNetwork`, has the name that asks for them."""
    if isinstance(module, EnergyNetwork):
        return CONDITION in inspect.signature(module.prepare).parameters
    return CONDITION in list(inspect.signature(module.forward).parameters)[2:3]
