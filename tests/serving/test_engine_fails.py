"""An engine that fails leaves nobody waiting."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

import drl_dist
from drl_dist.serving.engine import EngineEnded, ServingEngine
from drl_dist.serving.requests import SampleRequest
from tests.support import write_tiny_checkpoint


def test_an_engine_that_fails_tells_everyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    torch.set_num_threads(1)
    model = drl_dist.load(write_tiny_checkpoint(tmp_path / "c", width=4, num_chain_steps=2))
    engine = ServingEngine(model, max_batch=1)
    visits = [engine.submit(SampleRequest(seed=seed)) for seed in range(2)]
    monkeypatch.setattr(engine, "_answers", lambda _: 1 / 0)
    with engine.running():
        for visit in visits:
            with pytest.raises(EngineEnded, match=r"has ended by ZeroDivisionError \(division by zero\)") as caught:
                visit.image()
            assert isinstance(caught.value.__cause__, ZeroDivisionError) and visit.is_over
        assert not engine.is_running
        with pytest.raises(EngineEnded, match="ZeroDivisionError"):
            engine.submit(SampleRequest())
