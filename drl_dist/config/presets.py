"""Table 6 of the paper, and two presets of our own, as one literal table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from drl_dist.common.errors import UserError
from drl_dist.config.tree import (
    DiffusionConfig,
    Experiment,
    McmcConfig,
    ModelConfig,
    ObjectiveName,
    OptimConfig,
    TrainConfig,
)

WIDTHS_32 = (1, 2, 2, 2)
WIDTHS_64 = (1, 2, 2, 2, 4)
WIDTHS_128 = (1, 2, 2, 2, 4, 4)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One data set's hyperparameters; the defaults are what most of Table 6 has."""

    resolution: int
    """Height and width of the images, in pixels."""
    width_multipliers: tuple[int, ...]
    """Channels of each resolution level as multiples of `width`."""
    num_res_blocks: int
    """N, the residual blocks per resolution level."""
    batch_size: int
    """Images per step over all workers."""
    num_steps: int
    """Training steps in all."""
    channels: int = 3
    """Colour channels."""
    width: int = 128
    """Channels after the first convolution."""
    beta1: float = 0.9
    """Of Adam."""
    learning_rate: float = 1e-4
    """Reached after the warm-up."""
    warmup_steps: int = 1000
    """Steps over which the learning rate rises."""
    half_life_steps: int | None = None
    """Steps in which the learning rate halves; constant if None."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights."""
    horizontal_flip: bool = True
    """Flip half of the images left to right."""


TABLE_6: dict[str, Row] = {
    "cifar10": Row(resolution=32, width_multipliers=WIDTHS_32, num_res_blocks=8, batch_size=256, num_steps=240_000),
    "celeba64": Row(
        resolution=64, width_multipliers=WIDTHS_64, num_res_blocks=6, batch_size=128, num_steps=880_000, beta1=0.5
    ),
    "lsun_church64": Row(
        resolution=64, width_multipliers=WIDTHS_64, num_res_blocks=2, batch_size=128, num_steps=960_000
    ),
    "lsun_bedroom64": Row(
        resolution=64, width_multipliers=WIDTHS_64, num_res_blocks=2, batch_size=128, num_steps=760_000
    ),
    "lsun_church128": Row(
        resolution=128, width_multipliers=WIDTHS_128, num_res_blocks=2, batch_size=64, num_steps=840_000, beta1=0.5
    ),
    "lsun_bedroom128": Row(
        resolution=128, width_multipliers=WIDTHS_128, num_res_blocks=5, batch_size=64, num_steps=580_000, beta1=0.5
    ),
    # Ours: small enough for two CPU cores.
    "digits": Row(
        resolution=8,
        channels=1,
        width=32,
        width_multipliers=(1, 2),
        num_res_blocks=1,
        learning_rate=1.5e-3,
        warmup_steps=100,
        ema_decay=0.99,
        batch_size=32,
        num_steps=1_000,
        horizontal_flip=False,
    ),
    "fashion_mnist": Row(
        resolution=32,
        channels=1,
        width=16,
        width_multipliers=(1, 2, 4, 8),
        num_res_blocks=1,
        learning_rate=1.5e-3,
        warmup_steps=300,
        half_life_steps=6000,
        batch_size=32,
        num_steps=24_000,
    ),
}

ADJUSTMENTS: dict[str, dict[str, dict[str, Any]]] = {
    # For two CPU cores every gradient counts: a third of the chain steps, with three times their variance. Most pixels
    # of these images are exactly black; level 0 stays bounded with more noise than the ladder's .01 and a smooth
    # activation (docs/results.md).
    "fashion_mnist": {
        "model": {"activation": "silu"},
        "diffusion": {"first_variance": 1e-3},
        "mcmc": {"num_chain_steps": 10, "step_scale_squared": 6e-4},
    },
}
"""Further fields of single presets, by section."""

NEWER_FIELDS = ("model.spectral_norm_rule", "mcmc.normal_spread")
"""Fields for which presets choose otherwise than they did before these fields existed. What a record without them means
is their default in `drl_dist.config.tree`."""
FIRST_STEPS = "optim.first_objective_steps"
"""Stays where it is when a run is made longer; defaults, which follow the number of steps, are for new runs."""

SETTINGS = {
    "t6": "T = 6, K = 30 Langevin steps per level (10 for fashion_mnist): the paper's main setting",
    "t1k": "T = 1000 with linear variances, negatives from the normal approximation",
    "t1k_dsm": "T = 1000, denoising score matching with the gradient of the log-density as score",
    "t1": "T = 1, K = 180: one marginal density, short runs from white noise",
    "unet": "T = 10 (12 for fashion_mnist), one factor between levels: a U-Net, score matching, then recovery, K = 2",
}
"""The settings of section 4 and Table 2, and one of our own, by name."""
_DEFAULT_SETTINGS = {"digits": "unet", "fashion_mnist": "unet"}

_T1K_OBJECTIVES: dict[str, ObjectiveName] = {"t1k": "recovery", "t1k_dsm": "dsm"}
"""What the settings with T = 1000 minimise."""
# T = 1 has only the marginal top level; the step size that T = 6 has there is this many times b sigma.
TOP_LEVEL_SCALE = 9.8


@dataclass(frozen=True, kw_only=True)
class UNetRow:
    """What the setting `unet` changes in a row; the defaults are for images in colour of 32 to 128 pixels."""

    width: int = 64
    """Channels after the first convolution."""
    width_multipliers: tuple[int, ...] | None = None
    """See `ModelConfig.width_multipliers`; those of Table 6 if none are given."""
    patch_size: int = 1
    """See `ModelConfig.patch_size`."""
    num_res_blocks: int = 2
    """N."""
    attention_resolutions: tuple[int, ...] = ()
    """See `ModelConfig.attention_resolutions`."""
    data_std: float | None = None
    """See `ModelConfig.data_std`; none where no number was measured to be good, and the data decide."""
    num_levels: int = 10
    """T."""
    first_noise_to_signal: float | None = None
    """See `DiffusionConfig.first_noise_to_signal`."""
    last_noise_to_signal: float | None = None
    """See `DiffusionConfig.last_noise_to_signal`."""
    learning_rate: float = 2e-4
    """From the warm-up on; it falls along a cosine, to a fifth or so when recovery begins."""
    ema_decay: float = 0.9995
    """Decay of the moving average of the weights."""
    batch_size: int = 128
    """Images per step over all workers."""
    num_steps: int = 200_000
    """Training steps in all."""
    matching_share: float = 0.78
    """Share of the steps that match scores, before recovery."""
    horizontal_flip: bool | None = None
    """Flip half of the images left to right; as in Table 6 if None."""


UNETS: dict[str, UNetRow] = {
    "digits": UNetRow(
        width=24,
        num_res_blocks=1,
        data_std=0.75,
        first_noise_to_signal=1e-4,
        last_noise_to_signal=140.0,
        learning_rate=2e-3,
        ema_decay=0.995,
        batch_size=32,
        num_steps=1_000,
    ),
    "fashion_mnist": UNetRow(
        width=16,
        width_multipliers=(1, 2, 4),
        patch_size=2,
        num_res_blocks=1,
        # The data's own, and a ladder that goes as far as they ask for, by the factor of digits from level to level.
        data_std=0.87,
        num_levels=12,
        first_noise_to_signal=3e-4,
        last_noise_to_signal=2500.0,
        learning_rate=2e-3,
        ema_decay=0.996,
        batch_size=32,
        num_steps=3_600,
        matching_share=0.8,
        # Every shoe points to the left; a network this small does not learn both ways as well.
        horizontal_flip=False,
    ),
}
"""Rows of the setting `unet` that are not the defaults."""


def of_length(experiment: Experiment, num_steps: int) -> Experiment:
    """The experiment with another number of steps, of which a first objective has the share that it had."""
    optim, train_config = experiment.optim, experiment.train
    changed = replace(experiment, train=replace(train_config, num_steps=num_steps))
    if not optim.first_objective_steps:
        return changed
    first = round(optim.first_objective_steps * num_steps / train_config.num_steps)
    return replace(changed, optim=replace(optim, first_objective_steps=max(1, min(first, num_steps - 1))))


def default_setting(name: str) -> str:
    """The setting that commands take where none is given: t6, the paper's, unless another was measured to be better."""
    return _DEFAULT_SETTINGS.get(name, "t6")


def row_of(registered: str) -> Row | None:
    """The row whose models, in one of the settings, are registered under this name; None if there is none."""
    names = TABLE_6 | {f"{name}_{setting}": row for name, row in TABLE_6.items() for setting in SETTINGS}
    return names.get(registered)


def preset(name: str, setting: str = "t6") -> Experiment:
    """The experiment of one row of the table, in one of the settings.

    Raises:
        UserError: no row, or no setting, has this name.
    """
    return in_setting(_row(name), setting, UNETS.get(name, UNetRow()))


def in_setting(experiment: Experiment, setting: str, unet: UNetRow) -> Experiment:
    """An experiment of the setting t6 in another setting, by which it is then named too.

    Args:
        experiment: in the setting t6.
        setting: one of `SETTINGS`.
        unet: sizes and schedule of the setting unet; of no meaning for others.

    Raises:
        UserError: no setting has this name.
    """
    if setting not in SETTINGS:
        raise UserError("setting", got=setting, expected="one of " + ", ".join(SETTINGS), remedy="choose one of these")
    if setting == "t6":
        return experiment
    # Checkpoints are registered under this name: models of different settings are different models.
    experiment = replace(experiment, preset=f"{experiment.preset}_{setting}")
    if setting == "t1":
        return replace(
            experiment,
            diffusion=replace(experiment.diffusion, num_levels=1),
            mcmc=McmcConfig(num_chain_steps=180, level_scale_values=(TOP_LEVEL_SCALE,)),
        )
    if setting == "unet":
        return _unet(experiment, unet)
    optim = replace(experiment.optim, objective=_T1K_OBJECTIVES[setting])
    return replace(
        experiment,
        # A leaky ReLU's gradient is piecewise constant, and a thousand steps along it run away (docs/deviations.md).
        model=replace(experiment.model, activation="silu"),
        diffusion=replace(experiment.diffusion, ladder="linear", num_levels=1000),
        mcmc=McmcConfig(
            num_chain_steps=0,
            top_level="conditional",
            energy_scale="transition_variance",
            # Draws of standard deviation sigma vary more than y_0 does: recovery has no fixed point there.
            normal_spread="posterior" if optim.needs_negatives else "transition",
            antithetic=optim.needs_negatives,
            sampling_noise_scale=1.0,
        ),
        optim=optim,
    )


def _unet(experiment: Experiment, row: UNetRow) -> Experiment:
    """A row's images with a U-Net, whose sizes and schedule are its own."""
    model = replace(
        experiment.model,
        network="unet",
        width=row.width,
        width_multipliers=row.width_multipliers or experiment.model.width_multipliers,
        patch_size=row.patch_size,
        num_res_blocks=row.num_res_blocks,
        attention_resolutions=row.attention_resolutions,
        data_std=row.data_std,
        # Of no meaning there; as they are by default.
        activation="leaky_relu",
    )
    mcmc = McmcConfig(
        num_chain_steps=2,
        kernel="leimkuhler_matthews",
        start="tweedie",
        last_step="tweedie",
        step_rule="bound",
        # Near the root of 2, where a step forgets the directions of the largest curvature at once.
        bound_fraction=1.4,
        energy_scale="unit",
        sampling_noise_scale=1.0,
    )
    optim = OptimConfig(
        first_objective="score_matching",
        first_objective_steps=round(row.matching_share * row.num_steps),
        loss_weight="none",
        learning_rate=row.learning_rate,
        warmup_steps=100 if row.num_steps < 100_000 else 1000,
        final_rate_factor=0.01,
        ema_decay=row.ema_decay,
        max_grad_norm=10.0,
    )
    train = replace(experiment.train, batch_size=row.batch_size, num_steps=row.num_steps)
    if row.horizontal_flip is not None:
        train = replace(train, horizontal_flip=row.horizontal_flip)
    diffusion = DiffusionConfig(
        ladder="geometric",
        num_levels=row.num_levels,
        first_noise_to_signal=row.first_noise_to_signal,
        last_noise_to_signal=row.last_noise_to_signal,
    )
    return replace(experiment, model=model, diffusion=diffusion, mcmc=mcmc, optim=optim, train=train)


def _row(name: str) -> Experiment:
    if name not in TABLE_6:
        raise UserError("preset", got=name, expected="one of " + ", ".join(TABLE_6), remedy="choose one of these")
    experiment = experiment_of(name, TABLE_6[name])
    sections = {
        section: replace(getattr(experiment, section), **fields)
        for section, fields in ADJUSTMENTS.get(name, {}).items()
    }
    return replace(experiment, **sections)


def experiment_of(name: str, row: Row) -> Experiment:
    """A row's experiment in the setting t6, recorded under a name."""
    return Experiment(
        preset=name,
        model=ModelConfig(
            resolution=row.resolution,
            channels=row.channels,
            width=row.width,
            width_multipliers=row.width_multipliers,
            num_res_blocks=row.num_res_blocks,
            spectral_norm_rule="released",
        ),
        optim=OptimConfig(
            beta1=row.beta1,
            learning_rate=row.learning_rate,
            warmup_steps=row.warmup_steps,
            half_life_steps=row.half_life_steps,
            ema_decay=row.ema_decay,
        ),
        train=TrainConfig(batch_size=row.batch_size, num_steps=row.num_steps, horizontal_flip=row.horizontal_flip),
    )
