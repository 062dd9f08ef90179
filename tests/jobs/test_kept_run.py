"""A run that version 0.1.0 left is resumed, to the numbers that 0.1.0 itself came to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from drl_dist.checkpoints.format import PARTS, read_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.config.tree import RunConfig
from drl_dist.jobs.train.options import parse_train_options
from drl_dist.jobs.train.single_device import train_on_one_device

KEPT = Path(__file__).parents[1] / "kept" / "run_0_1_0"
"""Of 8 steps, with checkpoints after 4 and after 8 (tests/kept/README.md)."""


def parsed(data: Path, storage: Path, *more: str) -> RunConfig:
    tiny = {
        "--data": data,
        "--storage": storage,
        "--run-name": KEPT.name,
        "--model.width": 4,
        "--model.num-res-blocks": 1,
        "--model.time-embedding-dim": 4,
        "--model.time-hidden-dim": 8,
        "--mcmc.num-chain-steps": 2,
        "--train.batch-size": 8,
        "--train.num-steps": 8,
        "--checkpoint.every-steps": 4,
        "--tracking.num-samples": 4,
        "--engine.threads-per-worker": 1,
    }
    words = [str(word) for pair in tiny.items() for word in pair]
    return parse_train_options("digits", ["--without-ray", "--setting", "t6", *words, *more])[0]


@pytest.fixture
def left_after_4(tmp_path: Path) -> Path:
    """The storage of a run that was killed after its first checkpoint."""
    shutil.copytree(KEPT, tmp_path / KEPT.name)
    shutil.rmtree(tmp_path / KEPT.name / "checkpoint_000000008")
    return tmp_path


@pytest.mark.slow
def test_a_run_of_0_1_0_is_resumed_to_the_same_weights(
    left_after_4: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_on_one_device(parsed(digits, left_after_4)) == 0
    assert "resuming after step 4" in capsys.readouterr().out
    resumed = read_checkpoint(left_after_4 / KEPT.name / "checkpoint_000000008", PARTS)
    expected = read_checkpoint(KEPT / "checkpoint_000000008", PARTS)
    start = read_checkpoint(KEPT / "checkpoint_000000004", PARTS)
    assert resumed.state == expected.state
    for part in PARTS:
        assert resumed.tensors[part].keys() == expected.tensors[part].keys() != set()
    for name, tensor in expected.tensors["weights"].items():
        # The same bits on a CPU like the one that 0.1.0 ran on; others round their convolutions otherwise.
        torch.testing.assert_close(resumed.tensors["weights"][name], tensor, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(start.tensors["weights"][n], t) for n, t in expected.tensors["weights"].items())


def test_its_record_still_refuses_another_experiment(left_after_4: Path, digits: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.learning_rate"):
        train_on_one_device(parsed(digits, left_after_4, "--optim.learning-rate", "0.1"))


def test_a_spectral_norm_that_is_asked_for_explicitly_is_refused(left_after_4: Path, digits: Path) -> None:
    with pytest.raises(UserError, match=r"model\.spectral_norm_rule: own -> released"):
        train_on_one_device(parsed(digits, left_after_4), ["model.spectral_norm_rule"])
