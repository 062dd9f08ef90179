"""Questions and answers of the API, as its OpenAPI page shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from drl_dist.serving.requests import MAX_CHAIN_STEPS, MAX_NUMBER, MAX_ROUNDS

MAX_TEXT = 1000
"""Characters of a label or of a sum of energies."""
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Keys all noise; the same seed gives the same image.")]
Number = Annotated[int, Field(ge=0, le=MAX_NUMBER, description="Of the image among those of its seed.")]
Label = Annotated[
    str | None, Field(max_length=MAX_TEXT, description="Name of the label, of a model that knows labels.")
]
Compose = Annotated[str | None, Field(max_length=MAX_TEXT, description='A sum of energies, such as "3 + !8".')]
Guidance = Annotated[FiniteFloat | None, Field(description="w of (1 + w) f(y, c) - w f(y); by default 0.")]
ChainSteps = Annotated[
    int | None,
    Field(ge=0, le=MAX_CHAIN_STEPS, description="K, chain steps of every level; by default the model's own."),
]
File = Annotated[str, Field(min_length=1, description="A PNG, JPEG or WebP file in base64.")]
Fit = Annotated[
    bool,
    Field(description="Cut the middle square out of a picture of another size, and resize it; else it is refused."),
]


class Asked(BaseModel):
    """What all requests for images have."""

    model_config = ConfigDict(extra="forbid")

    seed: Seed = 0
    label: Label = None
    compose: Compose = None
    guidance: Guidance = None
    num_chain_steps: ChainSteps = None


class SampleAsked(Asked):
    """A generated image: that of ``jobs/sample.py`` with this seed and number."""

    number: Number = 0


class InterpolateAsked(Asked):
    """An image between two generated ones."""

    first: Number = 0
    second: Number = 1
    second_seed: Annotated[
        int | None, Field(ge=0, lt=2**63, description="Of the second image; by default that of the first.")
    ] = None
    weight: Annotated[FiniteFloat, Field(ge=0, le=1, description="From 0, the first image, to 1, the second.")] = 0.5


class PictureAsked(BaseModel):
    """A picture that is to be shown as the model sees it."""

    model_config = ConfigDict(extra="forbid")

    image: File
    fit: Fit = False


class InpaintAsked(Asked):
    """An image whose hidden pixels are to be filled in."""

    image: File
    mask: Annotated[
        str, Field(min_length=1, description="The same of a mask of the model's size: white pixels are filled in.")
    ]
    fit: Fit = False
    number: Number = 0
    num_rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS, description="Runs of each level's chain.")] = 4


class DenoiseAsked(Asked):
    """A noisy image that is to be cleaned."""

    image: File
    noise_std: Annotated[
        FiniteFloat, Field(gt=0, description="Standard deviation of its noise, in grey levels of 255.")
    ]
    fit: Fit = False
    number: Number = 0


class LogDensityAsked(BaseModel):
    """An image that is to be scored."""

    model_config = ConfigDict(extra="forbid")

    image: File
    fit: Fit = False
    seed: Seed = 0
    label: Label = None


SampleQuery = Annotated[SampleAsked, Query()]
InterpolateQuery = Annotated[InterpolateAsked, Query()]


class Image(BaseModel):
    """A finished image."""

    image: str = Field(description="PNG in base64.")
    energy: float | None = Field(
        description="Mean of -log p over the chain of level 0, in nats up to a constant; null where there was no chain."
    )
    seconds: float = Field(description="Since the request.")


class Picture(BaseModel):
    """A picture as the model sees it."""

    image: str = Field(description="PNG in base64, of the model's size and channels.")


class Level(BaseModel):
    """An image at a noise level."""

    level: int
    noise_std: float = Field(description="Standard deviation of the level's noise, in grey levels of 255.")
    log_density: float = Field(description="In nats, up to a constant of the level.")
    share_below: float | None = Field(
        description="Share of images of the data that are less probable; null with a label, and without data."
    )
    gradient: str = Field(
        description="PNG in base64: red where more brightness makes the image more probable, blue where less does."
    )
    gradient_scale: float = Field(description="Nats per grey level at the strongest colour.")


class LogDensity(BaseModel):
    """Log-densities of an image."""

    image: str = Field(description="PNG in base64: the image as the model sees it.")
    levels: list[Level]
    warnings: list[str] = Field(description="Reasons to distrust log-densities of this model.")


class Reference(BaseModel):
    """Log-densities of images of the data, to compare others with."""

    levels: list[int]
    log_densities: list[list[float]] | None = Field(
        description="In nats, of every level, sorted; null where there are no data."
    )


class Limits(BaseModel):
    """The largest that is accepted."""

    body_bytes: int
    picture_pixels: int
    num_chain_steps: int
    num_rounds: int


class Model(BaseModel):
    """The model."""

    name: str
    step: int = Field(description="Training steps made.")
    channels: int
    height: int
    width: int
    num_levels: int = Field(description="T; a film has T + 1 frames.")
    num_gradients: int = Field(description="Of the network, for an image.")
    label_kind: Literal["none", "class", "attributes"]
    labels: list[str]
    min_noise_std: float | None = Field(
        description="Of images that it can denoise, in grey levels of 255; null if it can none."
    )
    max_noise_std: float | None
    scored_levels: list[int]
    seconds_per_image: float = Field(description="Of one visitor alone.")
    warnings: list[str]
    limits: Limits


class Refusal(BaseModel):
    """Why there is no answer, in a sentence."""

    error: str
