"""Train on Fashion-MNIST at 32x32: ``python jobs/train_fashion_mnist.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.options import train_door

if __name__ == "__main__":
    train_door("fashion_mnist")
