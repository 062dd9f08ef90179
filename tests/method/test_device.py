"""Where jobs compute: one function, and every job calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drl_dist.common.errors import UserError
from drl_dist.evaluation.features import FeatureNetwork
from drl_dist.jobs.common.device import device_name, prepare_device

SOURCE = Path(__file__).resolve().parents[2] / "drl_dist"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    threads, is_deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = is_deterministic


def test_it_sets_threads_and_determinism_and_gives_the_device() -> None:
    torch.backends.cudnn.deterministic = False
    assert prepare_device("cpu", threads=1) == torch.device("cpu")
    assert torch.get_num_threads() == 1 and torch.backends.cudnn.deterministic
    # None leaves the threads; training takes the fastest convolutions.
    assert prepare_device(torch.device("cpu"), is_reproducible=False) == torch.device("cpu")
    assert torch.get_num_threads() == 1 and not torch.backends.cudnn.deterministic


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cudnn.deterministic = False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--use-gpu: got no GPU, expected a GPU that torch can use; leave the option"):
        prepare_device(device_name(use_gpu=True))
    assert not torch.backends.cudnn.deterministic
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare_device(device_name(use_gpu=True)) == torch.device("cuda")
    assert prepare_device("cuda:1") == torch.device("cuda", 1)
    assert device_name(use_gpu=False) == "cpu"


def test_a_feature_network_keeps_the_determinism_of_its_job() -> None:
    seen: list[bool] = []

    def extract(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen.append(torch.backends.cudnn.deterministic)
        return images.float().flatten(1), None

    network = FeatureNetwork("pixels", "pixels", 1, prepare_device("cpu"), extract)
    network(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    prepare_device("cpu", is_reproducible=False)
    network(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    assert seen == [True, False]


def test_no_job_decides_by_itself() -> None:
    # The library, which is no job, leaves torch as it was.
    texts = {path: path.read_text() for path in SOURCE.rglob("*.py") if "library" not in path.parts}
    decided = [
        path for path, text in texts.items() if "cudnn.deterministic = " in text or "cuda.is_available()" in text
    ]
    assert [path.name for path in decided] == ["device.py"]
