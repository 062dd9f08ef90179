"""Train on CIFAR-10: ``python jobs/train_cifar10.py --help``."""

from __future__ import annotations

from drl_dist.jobs.train.options import train_command

if __name__ == "__main__":
    train_command("cifar10")
