"""A feature network for 8x8 digits, trained on their labels: what Inception is to photographs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets_prep.sources.digits import load_images
from drl_dist.common.images import to_unit_range
from drl_dist.evaluation.features import FeatureNetwork

_STEPS, _BATCH, _HELD_OUT = 1500, 128, 360


def digits() -> tuple[Tensor, Tensor]:
    """The digits that the preset trains on, uint8 (1797, 1, 8, 8), and their labels (1797,)."""
    pixels, labels = load_images()
    return torch.from_numpy(pixels)[:, None], torch.from_numpy(labels)


def train_feature_network(images: Tensor, labels: Tensor, *, seed: int) -> tuple[FeatureNetwork, float]:
    """Train a small convolutional classifier whose 64 hidden values, of variance 1 on average, are the features.

    Args:
        images: uint8 (N, 1, 8, 8).
        labels: (N,) 0 to 9.
        seed: of initial weights, batches, and which 360 images are held out.

    Returns:
        the network, and the share of held-out images that it classifies correctly.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(256, 64), nn.ReLU(),
        )  # fmt: skip
        head = nn.Linear(64, 10)
        order = torch.randperm(len(images))
        held_out, known = order[:_HELD_OUT], order[_HELD_OUT:]
        x = to_unit_range(images)
        optimizer = torch.optim.AdamW([*hidden.parameters(), *head.parameters()], lr=1e-3, weight_decay=1e-2)
        for _ in range(_STEPS):
            chosen = known[torch.randint(len(known), (_BATCH,))]
            # A pixel of shift and some noise: features should not depend on exact positions and exact grey values.
            shifts = tuple(int(shift) for shift in torch.randint(-1, 2, (2,)))
            batch = torch.roll(x[chosen], shifts, (2, 3)) + 0.1 * torch.randn(len(chosen), 1, 8, 8)
            optimizer.zero_grad()
            functional.cross_entropy(head(hidden(batch)), labels[chosen]).backward()
            optimizer.step()

    with torch.no_grad():
        # One factor, so that distances do not depend on the scale that the classifier happened to find.
        scale = hidden(x).var(0).mean().sqrt()

    def extract(batch: Tensor) -> tuple[Tensor, Tensor]:
        values = hidden(to_unit_range(batch))
        return values / scale, head(values)

    network = FeatureNetwork("digits", f"digits seed={seed}", 1, torch.device("cpu"), extract)
    logits = network(images[held_out]).logits
    assert logits is not None
    return network, float((logits.argmax(1) == labels[held_out]).float().mean())
