"""Train on CIFAR-10: ``python jobs/train_cifar10.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.options import train_door

if __name__ == "__main__":
    train_door("cifar10")
