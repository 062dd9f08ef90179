"""Table 6 of the paper, and two presets of our own, as one literal table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from drl_dist.common.errors import UserError
from drl_dist.config.tree import Experiment, McmcConfig, ModelConfig, OptimConfig, TrainConfig

WIDTHS_32 = (1, 2, 2, 2)
WIDTHS_64 = (1, 2, 2, 2, 4)
WIDTHS_128 = (1, 2, 2, 2, 4, 4)
WIDTHS_256 = (1, 1, 2, 2, 2, 4, 4)

# Columns: resolution, channels, width, width multipliers, N, beta1, learning rate, warm-up, half-life, EMA decay,
# batch size, training steps, horizontal flip.
# fmt: off
TABLE_6: dict[str, tuple[int, int, int, tuple[int, ...], int, float, float, int, int | None, float, int, int, bool]] = {
    "cifar10":         (32,  3, 128, WIDTHS_32,  8, 0.9, 1e-4, 1000, None, 0.999, 256, 240_000, True),
    "celeba64":        (64,  3, 128, WIDTHS_64,  6, 0.5, 1e-4, 1000, None, 0.999, 128, 880_000, True),
    "lsun_church64":   (64,  3, 128, WIDTHS_64,  2, 0.9, 1e-4, 1000, None, 0.999, 128, 960_000, True),
    "lsun_bedroom64":  (64,  3, 128, WIDTHS_64,  2, 0.9, 1e-4, 1000, None, 0.999, 128, 760_000, True),
    "lsun_church128":  (128, 3, 128, WIDTHS_128, 2, 0.5, 1e-4, 1000, None, 0.999, 64,  840_000, True),
    "lsun_bedroom128": (128, 3, 128, WIDTHS_128, 5, 0.5, 1e-4, 1000, None, 0.999, 64,  580_000, True),
    # Ours: small enough for two CPU cores.
    "digits":          (8,   1, 32,  (1, 2),       1, 0.9, 1.5e-3, 100, None, 0.99, 32,  1_000,   False),
    "fashion_mnist":   (32,  1, 16,  (1, 2, 4, 8), 1, 0.9, 1.5e-3, 300, 6000, 0.999, 32,  24_000,  True),
}
# fmt: on

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


SETTINGS = {
    "t6": "T = 6, K = 30 Langevin steps per level (10 for fashion_mnist): the paper's main setting",
    "t1k": "T = 1000 with linear variances, negatives from the normal approximation",
    "t1k_dsm": "T = 1000, denoising score matching with the gradient of the log-density as score",
    "t1": "T = 1, K = 180: one marginal density, short runs from white noise",
}
"""The settings of section 4 and Table 2, by name."""

# T = 1 has only the marginal top level; the step size that T = 6 has there is this many times b sigma.
TOP_LEVEL_SCALE = 9.8


def preset(name: str, setting: str = "t6") -> Experiment:
    """The experiment of one row of the table, in one of the settings.

    Raises:
        UserError: no row, or no setting, has this name.
    """
    if setting not in SETTINGS:
        raise UserError("setting", got=setting, expected="one of " + ", ".join(SETTINGS), remedy="choose one of these")
    experiment = _row(name)
    if setting == "t6":
        return experiment
    # Checkpoints are registered under this name: models of different settings are different models.
    experiment = replace(experiment, preset=f"{name}_{setting}")
    if setting == "t1":
        return replace(
            experiment,
            diffusion=replace(experiment.diffusion, num_levels=1),
            mcmc=McmcConfig(num_chain_steps=180, level_scale_values=(TOP_LEVEL_SCALE,)),
        )
    return replace(
        experiment,
        # A leaky ReLU's gradient is piecewise constant, and a thousand steps along it run away (docs/deviations.md).
        model=replace(experiment.model, activation="silu"),
        diffusion=replace(experiment.diffusion, ladder="linear", num_levels=1000),
        mcmc=McmcConfig(
            num_chain_steps=0,
            top_level="conditional",
            energy_scale="transition_variance",
            antithetic=setting == "t1k",
            sampling_noise_scale=1.0,
        ),
        optim=replace(experiment.optim, objective="dsm" if setting == "t1k_dsm" else "recovery"),
    )


def _row(name: str) -> Experiment:
    if name not in TABLE_6:
        raise UserError("preset", got=name, expected="one of " + ", ".join(TABLE_6), remedy="choose one of these")
    (
        resolution,
        channels,
        width,
        multipliers,
        num_res_blocks,
        beta1,
        learning_rate,
        warmup_steps,
        half_life_steps,
        ema_decay,
        batch_size,
        num_steps,
        horizontal_flip,
    ) = TABLE_6[name]
    experiment = Experiment(
        preset=name,
        model=ModelConfig(
            resolution=resolution,
            channels=channels,
            width=width,
            width_multipliers=multipliers,
            num_res_blocks=num_res_blocks,
        ),
        optim=OptimConfig(
            beta1=beta1,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            half_life_steps=half_life_steps,
            ema_decay=ema_decay,
        ),
        train=TrainConfig(batch_size=batch_size, num_steps=num_steps, horizontal_flip=horizontal_flip),
    )
    sections = {
        section: replace(getattr(experiment, section), **fields)
        for section, fields in ADJUSTMENTS.get(name, {}).items()
    }
    return replace(experiment, **sections)
