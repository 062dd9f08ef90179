"""Twenty losses of every preset at tiny width: a change that is not meant to change numbers must not.

Made again with ``python -m tests.method.test_golden``, and then named in CHANGELOG.md as a change of numbers. The
losses of networks with ``model.spectral_norm_rule own``, which those of version 0.1.0 have, never change.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from drl_dist.common.batch import Batch
from drl_dist.config.presets import TABLE_6, preset
from drl_dist.config.tree import EngineConfig
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep

GOLDEN = Path(__file__).with_name("golden_losses.json")
GOLDEN_OWN = Path(__file__).with_name("golden_losses_own.json")
STEPS, BATCH_SIZE = 20, 4


def losses(name: str, rule: Literal["released", "own"]) -> list[float]:
    """Losses of the first steps of a preset, in float64 so that they are the same on every CPU."""
    experiment = preset(name)
    pools = len(experiment.model.width_multipliers) - 1
    experiment = dataclasses.replace(
        experiment,
        model=dataclasses.replace(
            experiment.model,
            resolution=2**pools,
            width=4,
            num_res_blocks=1,
            time_embedding_dim=8,
            time_hidden_dim=16,
            spectral_norm_rule=rule,
        ),
        mcmc=dataclasses.replace(experiment.mcmc, num_chain_steps=3),
        optim=dataclasses.replace(experiment.optim, warmup_steps=5, learning_rate=1e-3),
        train=dataclasses.replace(experiment.train, batch_size=BATCH_SIZE),
    )
    state = TrainState.create(experiment, dtype=torch.float64)
    step = TrainStep(state, experiment, EngineConfig(compile="never"))
    shape = (STEPS, BATCH_SIZE, experiment.model.channels, 2**pools, 2**pools)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    positions = torch.arange(STEPS * BATCH_SIZE).reshape(STEPS, BATCH_SIZE)
    return [float(step(Batch(images[i], positions[i])).loss) for i in range(STEPS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TABLE_6))
def test_losses_are_those_of_the_record(name: str) -> None:
    assert preset(name).model.spectral_norm_rule == "released"
    recorded = json.loads(GOLDEN.read_text())
    assert losses(name, "released") == pytest.approx(recorded[name], rel=1e-6, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TABLE_6))
def test_losses_of_the_first_version_are_still_to_be_had(name: str) -> None:
    recorded = json.loads(GOLDEN_OWN.read_text())
    assert losses(name, "own") == pytest.approx(recorded[name], rel=1e-6, abs=1e-9)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses(name, "released") for name in sorted(TABLE_6)}, indent=1) + "\n")
