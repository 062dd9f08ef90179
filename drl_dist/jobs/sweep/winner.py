"""The command that trains a trial's point at full length."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import Any

from drl_dist.common.nested import flatten, to_dict
from drl_dist.config.presets import SETTINGS, TABLE_6, default_setting, preset
from drl_dist.config.tree import Experiment, RunConfig

COMMANDS: dict[str, tuple[str, ...]] = {
    "cifar10": ("jobs/train_cifar10.py",),
    "celeba64": ("jobs/train_celeba64.py",),
    "lsun_church64": ("jobs/train_lsun64.py", "--category", "church_outdoor"),
    "lsun_bedroom64": ("jobs/train_lsun64.py", "--category", "bedroom"),
    "lsun_church128": ("jobs/train_lsun128.py", "--category", "church_outdoor"),
    "lsun_bedroom128": ("jobs/train_lsun128.py", "--category", "bedroom"),
    "digits": ("jobs/train_digits.py",),
    "fashion_mnist": ("jobs/train_fashion_mnist.py",),
}
"""Training command of every preset."""
assert COMMANDS.keys() == TABLE_6.keys()
# What the sweep chose for its trials, and the length of a trial.
_LEFT_OUT = ("experiment.preset", "experiment.train.num_steps", "run_name")
_LEFT_OUT_PARTS = ("tracking.score_", "checkpoint.")


def train_words(run: RunConfig, preset_name: str, setting: str, run_name: str) -> list[str]:
    """The words of a training command that makes this run, as long as its preset has it.

    Args:
        run: a trial's.
        preset_name: row of Table 6 that the sweep started from.
        setting: one of `drl_dist.config.presets.SETTINGS`.
        run_name: of the run to be started.
    """
    assert setting in SETTINGS
    default = dataclasses.replace(run, experiment=preset(preset_name, setting))
    run = dataclasses.replace(run, experiment=_at_length(run.experiment, default.experiment.train.num_steps))
    words = ["python", *COMMANDS[preset_name]]
    if setting != default_setting(preset_name):
        words += ["--setting", setting]
    words += ["--data", run.data, "--storage", run.storage, "--run-name", run_name]
    words += _machine(run)
    before, after = flatten(to_dict(default)), flatten(to_dict(run))
    for name, value in after.items():
        if value != before[name] and name not in _LEFT_OUT and name.startswith("experiment."):
            words += _option(name.removeprefix("experiment."), value)
    return words


def submitted(words: list[str]) -> str:
    """The words as a line for a shell that submits them to the cluster."""
    return "ray job submit --working-dir . -- " + shlex.join(words)


def _at_length(experiment: Experiment, num_steps: int) -> Experiment:
    """The experiment with another number of steps, of which its first objective has the same share."""
    optim, train = experiment.optim, dataclasses.replace(experiment.train, num_steps=num_steps)
    if optim.first_objective is not None:
        first = round(optim.first_objective_steps * num_steps / experiment.train.num_steps)
        optim = dataclasses.replace(optim, first_objective_steps=max(1, min(first, num_steps - 1)))
    return dataclasses.replace(experiment, optim=optim, train=train)


def _machine(run: RunConfig) -> list[str]:
    plain = RunConfig(experiment=run.experiment)
    before, after = flatten(to_dict(plain)), flatten(to_dict(run))
    words: list[str] = []
    for name, value in after.items():
        is_own = name in (*_LEFT_OUT, "data", "storage") or name.startswith((*_LEFT_OUT_PARTS, "experiment."))
        if not is_own and value != before[name]:
            words += _option(name, value)
    return words


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        head, _, last = flag.removeprefix("--").rpartition(".")
        return [flag] if value else ["--" + (f"{head}." if head else "") + "no-" + last]
    if isinstance(value, list):
        return [flag, *map(_text, value)]
    return [flag, _text(value)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "None" if value is None else json.dumps(value)


def values_text(values: Mapping[str, Any]) -> str:
    """A point in one line."""
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )
