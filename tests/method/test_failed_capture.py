"""A chain whose capture in a CUDA graph fails; streams and graphs of CUDA are made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import pytest
import torch

from drl_dist.config.tree import EngineConfig
from drl_dist.training.chain import GradientEngine
from drl_dist.training.state import TrainState
from tests.helpers.steps import tiny


class _Stream:
    def wait_stream(self, other: object) -> None: ...


class _Streams:
    """The current one, as torch keeps it."""

    def __init__(self) -> None:
        self.current = self.default = _Stream()

    @contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def capture(self, _graph: object) -> _Capture:
        return _Capture(self)


class _Capture:
    """As `torch.cuda.graph`, whose end raises before it goes back to the stream of before."""

    def __init__(self, streams: _Streams) -> None:
        self._streams = streams

    def __enter__(self) -> None:
        self._streams.current = _Stream()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")


def test_the_stream_of_before_is_the_current_one_after_a_capture_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = _Streams()
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams.current)
    monkeypatch.setattr(torch.cuda, "stream", streams.stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", streams.capture)
    engine = GradientEngine(TrainState.create(tiny()).network, EngineConfig(compile="never"))
    engine.uses_graphs = True
    with pytest.raises(torch.AcceleratorError, match="during capture"):
        engine.raw_at(torch.tensor([0, 1]))
    assert streams.current is streams.default
