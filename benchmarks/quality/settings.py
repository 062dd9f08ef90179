"""The settings that are compared. A row is data: what it changes in the preset of the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from drl_dist.common.nested import to_dict
from drl_dist.config.presets import preset
from drl_dist.config.tree import Experiment

Overrides = Mapping[str, Mapping[str, Any]]
"""Section of an experiment -> field -> value."""
DATA = ("digits", "fashion_mnist")
"""The sets of images, each with a preset of its name."""
NO_MIRRORING: Overrides = {"train": {"horizontal_flip": False}}
"""Of every setting: the held-out images are not mirrored, so samples of a mirrored set could not be like them."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the training, which goes on from the weights, averages and moments of the one before."""

    share: float
    """Of the budget; those of all phases add up to 1."""
    overrides: Overrides = field(default_factory=dict[str, Mapping[str, Any]])
    """On top of the setting's own. The network and the ladder stay."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A row of the table."""

    label: str
    """Its name in tables and pictures."""
    setting: str = "t6"
    """Of the preset; see `drl_dist.config.presets.SETTINGS`."""
    method: Literal["energy", "ddpm", "cooperative", "weighted"] = "energy"
    """energy: what drl_dist trains; ddpm: the baseline, with the sizes, optimiser and batches of the experiment;
    cooperative: an energy with an initialiser; weighted: an energy whose scores are matched with measured weights."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the method: of cooperative, see `benchmarks.quality.cooperative.CooperativeTrainee`."""
    overrides: Overrides = field(default_factory=dict[str, Mapping[str, Any]])
    """On top of the preset."""
    lowest_chain_steps: tuple[int, ...] = ()
    """K of the lowest levels, from level 0 up; the others have the preset's."""
    phases: tuple[Phase, ...] = (Phase(share=1.0),)
    """From the first on."""
    draws: Mapping[str, Overrides | int] = field(default_factory=lambda: {"as trained": {}})
    """Ways to draw samples, by name: overrides on top of the phase's for an energy, a number of steps for ddpm. The
    first is used at every point of the budget, the others at the last."""

    def experiments(self, data: str, seed: int, *more: Overrides) -> list[Experiment]:
        """One for each phase, still with the preset's number of steps.

        Raises:
            ValueError: one changes its objective within a phase, whose steps are all taken to cost the same.
        """
        base = applied(preset(data, self.setting), NO_MIRRORING, {"train": {"seed": seed}}, self.overrides, *more)
        if self.lowest_chain_steps:
            others = base.diffusion.num_levels - len(self.lowest_chain_steps)
            steps = (*self.lowest_chain_steps, *[base.mcmc.num_chain_steps] * others)
            base = applied(base, {"mcmc": {"level_chain_steps": steps}})
        made = [applied(base, phase.overrides) for phase in self.phases]
        if any(experiment.optim.first_objective for experiment in made):
            raise ValueError(f"setting {self.label}: an objective changes with a phase, not by optim.first_objective")
        return made

    def as_record(self) -> dict[str, Any]:
        """As JSON gives it back: results are kept only as long as their row stays the same."""
        told = {name: value for name, value in to_dict(self).items() if name != "label"}
        # Rows without these are recorded as they were before there were any.
        absent = {name for name in ("options", "lowest_chain_steps") if not told[name]}
        return {name: value for name, value in told.items() if name not in absent}


def _k(*numbers: int) -> Mapping[str, Overrides]:
    """Samples with these numbers of chain steps a level."""
    return {f"K = {number}": {"mcmc": {"num_chain_steps": number}} for number in numbers}


_PLAIN: Mapping[str, Overrides] = {
    "plain Langevin, K = 3, c = .9": {"mcmc": {"kernel": "langevin", "num_chain_steps": 3, "bound_fraction": 0.9}}
}
"""The steps of which the mean of two successive noises makes longer ones."""

# Phases change the objective, so that each has its share of the budget whatever that is.
_ONE_OBJECTIVE = {"first_objective": None, "first_objective_steps": 0, "switch_rate_factor": 1.0}
_MATCHING: Overrides = {"optim": {**_ONE_OBJECTIVE, "objective": "score_matching"}}

_UNET = Setting(
    label="U-Net: score matching, recovery",
    setting="unet",
    overrides={"optim": _ONE_OBJECTIVE},
    phases=(Phase(share=0.6, overrides=_MATCHING), Phase(share=0.4)),
    draws={**_k(2, 1, 3), **_PLAIN},
)


def _in_batches(size: int) -> Setting:
    """The U-Net with larger batches: learning rate by the root of their number, and average over as many images."""
    factor = size / 32
    optim = {"learning_rate": 2e-3 * factor**0.5, "ema_decay": 0.995**factor, "warmup_steps": round(100 / factor)}
    return dataclasses.replace(
        _UNET,
        label=f"U-Net, batches of {size}",
        overrides={"optim": _ONE_OBJECTIVE | optim, "train": {"batch_size": size}},
    )


SETTINGS: Mapping[str, Setting] = {
    "preset": Setting(label="T6 as released"),
    "unet": _UNET,
    "unet_matching": Setting(label="U-Net: score matching", setting="unet", overrides=_MATCHING, draws=_k(2, 1, 3, 0)),
    "ddpm": Setting(
        label="DDPM, no energy",
        setting="unet",
        method="ddpm",
        overrides=_MATCHING,
        draws={"50 strided steps": 50, "1000 ancestral steps": 1000},
    ),
    "unet_cdrl": dataclasses.replace(
        _UNET, label="the same with an initialiser", method="cooperative", options={"width": 16, "target": "chains"}
    ),
    "unet_cdrl_data": dataclasses.replace(
        _UNET,
        label="the same, which learns from the data alone",
        method="cooperative",
        options={"width": 16, "target": "data"},
    ),
    "unet_weighted": dataclasses.replace(_UNET, label="U-Net, levels weighted by measured noise", method="weighted"),
    "unet_adapted": dataclasses.replace(
        _UNET,
        label="U-Net, steps adapted to the measured curvature",
        overrides={"optim": _ONE_OBJECTIVE, "mcmc": {"step_adaptation": "curvature"}},
        draws=_k(2, 3),
    ),
    "unet_longer": dataclasses.replace(
        _UNET,
        label="U-Net, longer chains at the four lowest levels",
        lowest_chain_steps=(6, 6, 4, 4),
        draws={"as trained": {}, "K = 2": {"mcmc": {"num_chain_steps": 2, "level_chain_steps": ()}}},
    ),
    "unet_64": _in_batches(64),
    "unet_128": _in_batches(128),
    # A new row needs nothing but its line here, for instance
    #   "silu": Setting(label="SiLU", overrides={"model": {"activation": "silu"}}),
    # with phases=(Phase(share=0.6, overrides={...}), Phase(share=0.4)) to change its objective on the way, and
    # draws={"K = 3": {"mcmc": {"num_chain_steps": 3}}, ...} to sample in other ways than it was trained.
}
"""The rows by name."""


def applied(experiment: Experiment, *overrides: Overrides) -> Experiment:
    """An experiment with other values in some fields.

    Raises:
        UserError: the values do not go together.
        TypeError: a field does not exist.
    """
    for one in overrides:
        sections = {name: dataclasses.replace(getattr(experiment, name), **fields) for name, fields in one.items()}
        experiment = dataclasses.replace(experiment, **sections)
    return experiment
