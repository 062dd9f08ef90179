"""Tiny experiments, states and batches for tests of the training step."""

from __future__ import annotations

import dataclasses

import torch

from drl_dist.common.batch import Batch
from drl_dist.config.presets import preset
from drl_dist.config.tree import EngineConfig, Experiment
from drl_dist.training.ema import Ema
from drl_dist.training.state import TrainState

_ASLEEP = ("conv_2.weight", "attention.out.weight")
EAGER = EngineConfig(compile="never", cuda_graph=False)


def tiny(**train: int) -> Experiment:
    """Two resolution levels, eight channels, three chain steps."""
    digits = preset("digits")
    return dataclasses.replace(
        digits,
        model=dataclasses.replace(digits.model, width=8, time_hidden_dim=16, time_embedding_dim=8),
        mcmc=dataclasses.replace(digits.mcmc, num_chain_steps=3),
        train=dataclasses.replace(digits.train, **{"batch_size": 12, **train}),
    )


def tiny_unet(**model: object) -> Experiment:
    """The same with a U-Net, and any of the model's fields."""
    given = tiny()
    model = {"network": "unet", **model}
    return dataclasses.replace(
        given,
        mcmc=dataclasses.replace(given.mcmc, energy_scale="unit"),
        model=dataclasses.replace(given.model, **model),
        optim=dataclasses.replace(given.optim, loss_weight="none"),
    )


def waken(state: TrainState) -> None:
    """Give the zero-initialised convolutions weights, so that every path carries numbers; one exceeds the cap of 1."""
    generator = torch.Generator().manual_seed(1)
    for index, (name, value) in enumerate(state.network.named_parameters()):
        if name.endswith(_ASLEEP) or (name == "head.weight" and not bool(value.any())):
            with torch.no_grad():
                value.normal_(std=0.3 if index % 2 else 0.02, generator=generator)
    state.ema = Ema(state.network, state.ema.decay)


def batch(start: int, size: int = 12) -> Batch:
    positions = torch.arange(start, start + size)
    images = torch.randint(0, 256, (size, 1, 8, 8), generator=torch.Generator().manual_seed(start), dtype=torch.uint8)
    return Batch(images, positions)
