"""Train on Fashion-MNIST at 32x32: ``python jobs/train_fashion_mnist.py --help``."""

from __future__ import annotations

from drl_dist.jobs.train.options import train_command

if __name__ == "__main__":
    train_command("fashion_mnist")
