"""A backbone of timm as an energy.

With s the standard deviation of the noise in y_t, v the variance of the data in it and u = y / sqrt(v + s**2), the
log-density is, for a backbone g of which a vector of features is taken,

    f(y, t) = -|y|**2 / (2 (v + s**2)) + sqrt(v) / s <w(t), g(u, t)>

where w is a dense layer over an embedding of the log signal-to-noise ratio, and of the label where there is one, and g
sees that ratio as a further channel of the image. As for the U-Net, w = 0 at the start, where f is the log-density of
white Gaussian data of variance v, and the factor makes the image gradient of <w, g> as large as the score asks for at
every level.

Energies are differentiated twice and see images of all levels in one batch, so what backbones have for classification
is replaced: batch normalisation by group normalisation, activations with kinks by SiLU, dropout and stochastic depth by
nothing, and fused attention, which cannot be differentiated twice, by the plain one.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import Tensor, nn

from drl_dist.common.errors import UserError, described
from drl_dist.common.torchvision_import import make_importable
from drl_dist.energy.condition import ConditionEmbedding
from drl_dist.energy.layers import sinusoidal_embedding
from drl_dist.energy.unet import EMBEDDING_SCALE, num_groups

make_importable()
import timm  # noqa: E402
from timm.layers.drop import DropPath  # noqa: E402
from timm.layers.norm_act import BatchNormAct2d  # noqa: E402

_KINKED = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.ELU,
)
EMBEDDING_DIM = 128
"""Of the noise level."""
_CHANNEL_SCALE = 4.0
"""Of log signal-to-noise ratios, which then are of order one."""


class TimmEnergy(nn.Module):
    """f(y, t) of a backbone; see the top of the module.

    Args:
        name: of timm's, without ``timm:`` before it.
        channels, resolution: of the images.
        noise_std, signal_std: (T,) standard deviation of the noise, and of the data, in y_t.
        options: further arguments of ``timm.create_model``.
        condition: what labels add to the embedding, of width `EMBEDDING_DIM`; None for energies without labels.

    Raises:
        UserError: timm has no such model, or it cannot be made for these images.
    """

    noise_std: Tensor
    signal_std: Tensor

    def __init__(
        self,
        name: str,
        *,
        channels: int,
        resolution: int,
        noise_std: Tensor,
        signal_std: Tensor,
        options: dict[str, Any],
        condition: ConditionEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.condition = condition
        self.register_buffer("noise_std", noise_std, persistent=False)
        self.register_buffer("signal_std", signal_std, persistent=False)
        self.backbone, width = _backbone(name, channels + 1, resolution, options)
        self.embed = nn.Sequential(nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM), nn.SiLU())
        self.head = nn.Linear(EMBEDDING_DIM, width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, y: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log-densities (B,) of images (B, C, H, W) at levels (B,), and with labels (B, size)."""
        noise, signal = self.noise_std[level].to(y.dtype), self.signal_std[level].to(y.dtype)
        variance = noise.square() + signal.square()
        log_snr = 2 * (signal / noise).log()
        u = y * variance.rsqrt()[:, None, None, None]
        channel = (log_snr / _CHANNEL_SCALE)[:, None, None, None].expand(-1, 1, *y.shape[2:])
        features = self.backbone(torch.cat([u, channel], dim=1))
        embedding = sinusoidal_embedding(EMBEDDING_SCALE * log_snr, EMBEDDING_DIM).to(y.dtype)
        # Sums of many numbers, for which bfloat16 has too few bits.
        with torch.autocast(y.device.type, enabled=False):
            embedded = self.embed(embedding)
            if self.condition is not None and condition is not None:
                embedded = embedded + self.condition(condition)
            product = (self.head(embedded) * features.to(y.dtype)).sum(1) / math.sqrt(features.shape[1])
        return signal / noise * product - 0.5 * y.square().flatten(1).sum(1) / variance


def _backbone(name: str, channels: int, resolution: int, options: dict[str, Any]) -> tuple[nn.Module, int]:
    """The backbone as energies need it, and how many features it has."""
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise UserError(
            "config field model.network",
            got=f"timm:{name}",
            expected="a model of timm" + (", such as " + ", ".join(nearest) if nearest else ""),
            remedy="timm.list_models() lists all",
        )
    given: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": channels}
    if "pretrained" in options:
        raise UserError(
            "config field model.options",
            got="pretrained",
            expected="arguments of the architecture: an energy is trained from its own initial weights",
            remedy="leave it out",
        )
    try:
        try:
            sized: dict[str, Any] = {**given, "img_size": resolution, **options}
            found = timm.create_model(name, **sized)
        except TypeError as error:
            # Convolutional networks take images of any size.
            if "img_size" not in str(error):
                raise
            found = timm.create_model(name, **(given | options))
        backbone = _smooth(found)
        with torch.no_grad():
            (width,) = backbone(torch.zeros(1, channels, resolution, resolution)).shape[1:]
        return backbone, width
    except Exception as error:
        # timm's models raise what they like about arguments that they cannot use.
        raise UserError(
            "config field model.options",
            got=f"timm:{name}, which raises {described(error)}",
            expected=f"a model that can be made for {channels - 1} x {resolution} x {resolution} images",
            remedy='choose another model, or other options, such as {"patch_size": 2}',
        ) from error


def _smooth(module: Any) -> nn.Module:
    """The module, an `nn.Module`, with what energies cannot have replaced, and so its parts."""
    if isinstance(module, nn.Dropout | nn.Dropout2d | DropPath):
        return nn.Identity()
    if isinstance(module, BatchNormAct2d):
        features: Any = module.num_features
        norm = nn.GroupNorm(num_groups(features), features)
        return nn.Sequential(norm, _smooth(module.drop), _smooth(module.act))
    if isinstance(module, nn.BatchNorm2d):
        width: Any = module.num_features
        return nn.GroupNorm(num_groups(width), width)
    if isinstance(module, _KINKED) or type(module).__name__.lower().startswith(("hard", "relu")):
        return nn.SiLU()
    for name, part in module.named_children():
        setattr(module, name, _smooth(part))
    if hasattr(module, "fused_attn"):
        module.fused_attn = False
    if getattr(module, "inplace", False) is True:
        # What an in-place activation overwrites is asked for again by second derivatives.
        module.inplace = False
    return module
