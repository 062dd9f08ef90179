"""The networks whose features and classes score the samples: small classifiers of the benchmark's own images."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.digit_features import train_feature_network
from benchmarks.quality.data import Data
from benchmarks.quality.record import write_atomically
from drl_dist.common.images import to_unit_range
from drl_dist.common.progress import progress
from drl_dist.evaluation.features import FeatureNetwork, features_of

_STEPS, _BATCH = 2000, 128
_FOR_SCALE = 2000


def feature_network(data: Data, cache: Path, steps: int = _STEPS, seed: int = 0) -> tuple[FeatureNetwork, float]:
    """The network for these images, trained on nothing but the training images.

    Args:
        cache: file that keeps the weights of a network that takes longer to train than to read.
        steps: updates of such a network.
        seed: of its training.

    Returns:
        the network, and the share of held-out images that it classifies correctly.
    """
    if data.name == "digits":
        network, _ = train_feature_network(data.train, data.train_labels, seed=seed)
    else:
        network = _clothes_network(data, cache, steps, seed)
    logits = features_of(network, data.held_out.split(500)).logits
    assert logits is not None
    return network, float((logits.argmax(1) == data.held_out_labels).float().mean())


class _Classifier(nn.Module):
    """Images of 32x32 -> ten logits, from 128 hidden values."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


def _clothes_network(data: Data, cache: Path, steps: int, seed: int) -> FeatureNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Classifier()
        if cache.exists():
            model.load_state_dict(load_file(cache))
        else:
            _train(model, data, steps)
            write_atomically(cache, save(model.state_dict()))
    model.requires_grad_(False)
    # One factor, so that distances do not depend on the scale that the classifier happened to find.
    scale = model.hidden(to_unit_range(data.train[:_FOR_SCALE])).var(0).mean().sqrt()

    def extract(batch: Tensor) -> tuple[Tensor, Tensor]:
        values = model.hidden(to_unit_range(batch))
        return values / scale, model.head(values)

    return FeatureNetwork(data.name, f"{data.name} steps={steps} seed={seed}", 1, torch.device("cpu"), extract)


def _train(model: _Classifier, data: Data, steps: int) -> None:
    """As `benchmarks.digit_features` does it: with a pixel of shift and some noise."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    with progress("feature network", steps, 0, "steps") as advance:
        for _ in range(steps):
            chosen = torch.randint(len(data.train), (_BATCH,))
            shifts = tuple(int(shift) for shift in torch.randint(-1, 2, (2,)))
            batch = torch.roll(to_unit_range(data.train[chosen]), shifts, (2, 3))
            optimizer.zero_grad()
            logits = model(batch + 0.1 * torch.randn_like(batch))
            functional.cross_entropy(logits, data.train_labels[chosen]).backward()
            optimizer.step()
            advance(1)
