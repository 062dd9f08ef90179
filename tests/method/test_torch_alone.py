"""Floors 0 to 2 run where only torch and numpy are installed."""

from __future__ import annotations

import subprocess
import sys

# Everything that the extras bring; a None in sys.modules makes an import fail as if it were not installed.
EXTRAS = [
    "ray",
    "mlflow",
    "gcsfs",
    "s3fs",
    "webdataset",
    "pyarrow",
    "safetensors",
    "pydantic",
    "tyro",
    "rich",
    "PIL",
    "timm",
    "torchvision",
    "torch_fidelity",
    "matplotlib",
    "sklearn",
    "lmdb",
]

PROGRAM = """
import sys
for name in {extras}:
    sys.modules[name] = None
import torch
from drl_dist.config.tree import EngineConfig
from drl_dist.likelihood import adaptation, bits, report
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.config.presets import preset
from drl_dist.build import build_sampler
from drl_dist.common.batch import Batch
from drl_dist.training.chain import GradientEngine
from drl_dist.training.loop import train
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
import dataclasses
e = preset("digits")
e = dataclasses.replace(e, model=dataclasses.replace(e.model, width=4, time_hidden_dim=8),
                        mcmc=dataclasses.replace(e.mcmc, num_chain_steps=2),
                        train=dataclasses.replace(e.train, num_steps=2, batch_size=2))
state = TrainState.create(e)
batches = [Batch(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2) + 2 * i) for i in range(2)]
train(TrainStep(state, e, EngineConfig()), state, e, batches, [])
engine = GradientEngine(state.ema_network(), EngineConfig())
images = build_sampler(e).sample(engine.raw_at, PhiloxNoise(0), torch.arange(2), (1, 8, 8))
print(state.step, tuple(images.shape), bool(images.isfinite().all()))
"""


def test_training_and_sampling_without_the_extras() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(extras=EXTRAS)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[0] == "2 (2, 1, 8, 8) True"
