"""The method and the training loop run on torch and numpy alone, and a whole run without Ray and MLflow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.documents.pages import blocks, pages
from tests.helpers.forked import real_python
from tests.support import ROOT, subprocess_environment

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

import drl_dist
import numpy
model = drl_dist.train(numpy.zeros((4, 8, 8), numpy.uint8), e, device="cpu", show_progress=False)
print(model.sample(2).shape, model.log_density(numpy.zeros((1, 8, 8), numpy.uint8)).shape)
for use in (lambda: model.save("saved"), lambda: drl_dist.load("saved")):
    try:
        use()
    except drl_dist.common.errors.UserError as error:
        print(error)

# The script of the page, but for a smaller experiment.
import drl_dist.config.presets
sys.modules.pop("PIL")
drl_dist.config.presets.preset, whole_preset = lambda name: e, preset
exec({script!r}, {{}})
drl_dist.config.presets.preset = whole_preset
print("script")

# The command, with all of the extras but Ray and MLflow.
for name in set({extras}) - {{"ray", "mlflow"}}:
    if sys.modules.get(name, sys) is None:
        del sys.modules[name]
import runpy
sys.argv = ["train_digits.py", "--without-ray", *{arguments}]
try:
    runpy.run_path({command!r}, run_name="__main__")
except SystemExit as end:
    print("command", end.code)
assert sys.modules["ray"] is None and sys.modules["mlflow"] is None
"""


@pytest.mark.slow
def test_training_and_sampling_without_the_extras(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    text = pages()["docs/training.md"]
    (script,) = [body for _, language, body in blocks(text) if language == "python" and "callbacks" in body]
    words = f"--data {tmp_path}/images.npy --storage {tmp_path}/runs --run-name a --train.batch-size 2"
    words += " --train.num-steps 2 --optim.first-objective-steps 1 --model.width 4 --mcmc.num-chain-steps 2"
    arguments = f"{words} --tracking.num-samples 4".split()
    command = str(ROOT / "jobs/train_digits.py")
    program = PROGRAM.format(extras=EXTRAS, script=script, arguments=arguments, command=command)
    ran = subprocess.run(
        [real_python(), "-c", program],
        cwd=tmp_path,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "2 (2, 1, 8, 8) True"
    assert lines[1] == "torch.Size([2, 1, 8, 8]) torch.Size([1])"
    missing = "expected what the extra files installs; pip install 'drl_dist[files]'."
    assert lines[2].startswith("saving a model: got no package ") and lines[2].endswith(missing)
    assert lines[3].startswith("loading a model: got no package ") and lines[3].endswith(missing)
    assert lines[4] == "step 1/2: under way" and lines[5].startswith("step 2/2: loss ") and lines[6] == "script"
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [numbers["step"] for numbers in logged] == [1, 2]
    assert {path.name for path in tmp_path.glob("*.png")} == {"samples-2.png", "progression-2.png"}
    assert lines[-1] == "command 0", ran.stderr
    made = {path.name for path in (tmp_path / "runs/a").iterdir()}
    assert made >= {"checkpoint_000000002", "metrics", "samples.png", "curves.png", "experiment.json"}
