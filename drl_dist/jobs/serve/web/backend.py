"""What the pages ask of whatever runs the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from torch import Tensor

from drl_dist.serving.requests import Request


class Outlook(NamedTuple):
    """What a visitor has to wait for."""

    ahead: int
    """Requests that come in before it."""
    seconds: float | None
    """Until its image; None where it is not known."""


class Shown(NamedTuple):
    """A level of a chain."""

    level: int
    """t: from T, white noise, to 0, the image."""
    png: bytes
    energy: float | None
    """Mean of -log p over the level's chain, in nats up to a constant of the level; None where there was no chain."""


class Again(NamedTuple):
    """The process that made the image was lost, and another begins it anew; no level is shown twice."""


News = Outlook | Shown | Again


class About(NamedTuple):
    """The model."""

    name: str
    step: int
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    num_levels: int
    """T."""
    num_gradients: int
    """Of the network, for an image."""
    label_kind: str
    """none, class or attributes."""
    label_names: tuple[str, ...]
    noise_range: tuple[float, float] | None
    """Of images that it can denoise: standard deviation in grey levels of 255; None if it can none."""
    scored_levels: tuple[int, ...]
    seconds_per_image: float
    """Of one visitor alone."""
    warnings: tuple[str, ...]
    """Reasons to distrust its log-densities."""


class ScoredLevel(NamedTuple):
    """An image at a noise level; as of `drl_dist.serving.scoring.LevelScore`."""

    level: int
    noise_std: float
    log_density: float
    gradient: Tensor
    """(C, H, W) float32."""


class Backend(Protocol):
    """One model, wherever it runs."""

    async def about(self) -> About:
        """The model."""
        ...

    def visit(self, request: Request, *, has_film: bool) -> AsyncGenerator[News, None]:
        """The T + 1 levels of an image, in order, and meanwhile what is still to be waited for; of one who watches no
        film, the image alone of the levels.

        Closing the generator gives up the image.

        Raises:
            UserError: the request cannot be fulfilled; `Busy` if too many wait.
        """
        ...

    async def scores(self, image: Tensor, seed: int, label: str | None) -> list[ScoredLevel]:
        """An image, uint8 (C, H, W), at each of the scored levels; errors as of `visit`."""
        ...

    async def reference(self) -> list[list[float]] | None:
        """Log-densities of images of the data at each of the scored levels; None if there are no data."""
        ...
