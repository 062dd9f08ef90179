"""What is measured: every preset in the paper's setting and with a U-Net, once for all that cost the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.tree import Experiment
from drl_dist.training.cost import phases, with_numbers

_FIRST = ("cifar10", "lsun_church128", "celeba64")
"""Presets in order of worth; the others follow as they stand in the table."""


@dataclass(frozen=True)
class Case:
    """A preset in a setting."""

    name: str
    """PRESET:SETTING"""
    experiment: Experiment
    """With recovery as its one objective, and some numbers for what is left to data."""
    alike: tuple[str, ...] = ()
    """Names of other cases that cost the same."""

    def of(self, batch: int) -> Experiment:
        """The experiment with a batch of so many images."""
        return replace(self.experiment, train=replace(self.experiment.train, batch_size=batch))

    @property
    def batch(self) -> int:
        """Images of the preset's batch."""
        return self.experiment.train.batch_size

    @property
    def num_blocks(self) -> int:
        """Residual blocks on the way down, with which the time of compilation grows."""
        model = self.experiment.model
        return model.num_res_blocks * len(model.width_multipliers)


def cases(*, is_small: bool) -> list[Case]:
    """All cases in order of worth; if they are to be small, two of tiny size."""
    if is_small:
        return [Case(f"digits:{setting}", tiny(_recovery("digits", setting))) for setting in ("t6", "unet")]
    presets = [*_FIRST, *(name for name in TABLE_6 if name not in _FIRST)]
    found: list[Case] = []
    for name in presets:
        for setting in ("t6", "unet"):
            found.append(Case(f"{name}:{setting}", _recovery(name, setting)))
    return _merged(found)


def tiny(experiment: Experiment, *, width: int = 8, batch: int = 4, num_chain_steps: int = 2) -> Experiment:
    """The experiment with a small network, batch and chain."""
    return replace(
        experiment,
        model=replace(experiment.model, width=width, num_res_blocks=1, time_hidden_dim=2 * width),
        mcmc=replace(experiment.mcmc, num_chain_steps=num_chain_steps),
        train=replace(experiment.train, batch_size=batch),
    )


def _recovery(name: str, setting: str) -> Experiment:
    return with_numbers(phases(preset(name, setting))[-1][1])


def _merged(found: Iterable[Case]) -> list[Case]:
    kept: dict[Any, Case] = {}
    for case in found:
        experiment = case.experiment
        key = experiment.model, experiment.diffusion, experiment.mcmc, case.batch
        first = kept.setdefault(key, case)
        if first is not case:
            kept[key] = replace(first, alike=(*first.alike, case.name))
    return list(kept.values())
