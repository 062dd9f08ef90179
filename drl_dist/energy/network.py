"""What training and sampling need of a network: an energy, split into what the image changes and what it does not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from drl_dist.energy.condition import ConditionEmbedding
from drl_dist.energy.layers import Layer


class EnergyNetwork(nn.Module, ABC):
    """f_theta(y, t), up to the energy scale: images and noise levels -> one raw number each. With labels c it is
    f_theta(y, t, c).

    `prepare` computes what does not depend on the image, `evaluate` the rest. What passes between them is a pytree of
    tensors and constants of the network's own kind.
    """

    image_shape: tuple[int, int, int]
    """(channels, height, width) of an image."""
    gradient_uses_all_parameters: bool = False
    """Whether the image gradient depends on every parameter, unlike on a bias behind the last activation. Where it may
    not, score matching on several workers looks at each step for those that it left out."""
    recomputes_blocks: bool = False
    """Whether an update's forward keeps the inputs of blocks alone, and its backward computes the rest again. A network
    without blocks takes no notice of it."""
    curvature: Tensor | None
    """(T,) curvature of the conditional densities over its bound, as training measured it (`mcmc.step_adaptation`): a
    buffer, which checkpoints keep and the moving average averages. None if training does not measure it."""
    condition: ConditionEmbedding | None
    """What labels add to the embedding of the noise level; None in a network that knows none."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of the raw output."""
        return next(self.parameters()).dtype

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("curvature", None)
        self.condition = None

    def with_condition(self, embedded: Tensor, condition: Tensor | None) -> Tensor:
        """An embedding of noise levels (B, width) with that of labels (B, size) added to it, if there are any."""
        if condition is None or self.condition is None:
            return embedded
        return embedded + self.condition(condition)

    def advance_power_iteration(self) -> None:
        """One power iteration of every spectral norm, if there are any; once per training step."""
        for module in self.modules():
            if isinstance(module, Layer):
                module.advance_power_iteration()

    @abstractmethod
    def effective_weights(self, dtype: torch.dtype | None = None) -> Any:
        """Everything that depends on the weights alone.

        Args:
            dtype: dtype of the convolutions; that of the weights by default.
        """

    @abstractmethod
    def prepare(
        self,
        level: Tensor,
        dtype: torch.dtype | None = None,
        weights: Any = None,
        condition: Tensor | None = None,
    ) -> Any:
        """Everything that does not depend on the image.

        Args:
            level: (B,) int64 noise levels.
            dtype: dtype of the convolutions; that of the weights by default.
            weights: result of `effective_weights`, if already computed.
            condition: (B, size) labels, see `drl_dist.energy.condition`; None for f(y, t). Networks that know no labels
                are never given any.
        """

    @staticmethod
    @abstractmethod
    def evaluate(prepared: Any, y: Tensor) -> Tensor:
        """Raw output of images under prepared weights.

        A plain function of tensors, the same for all networks of a kind, so that it can be compiled and captured.

        Args:
            prepared: result of `prepare` for the levels of these images.
            y: (B, C, H, W).

        Returns:
            (B,), in the dtype of the parameters.
        """

    def forward(
        self, y: Tensor, level: Tensor, dtype: torch.dtype | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Raw output (B,) of images (B, C, H, W) at noise levels (B,), and with labels (B, size)."""
        return self.evaluate(self.prepare_given(level, dtype, None, condition), y)

    def prepare_given(self, level: Tensor, dtype: torch.dtype | None, weights: Any, condition: Tensor | None) -> Any:
        """`prepare`, also of a network whose own knows nothing of labels."""
        if condition is None:
            return self.prepare(level, dtype, weights)
        return self.prepare(level, dtype, weights, condition)
