"""Train on CelebA at 64x64: ``python jobs/train_celeba64.py --help``."""

from __future__ import annotations

from drl_dist.jobs.train.options import train_command

if __name__ == "__main__":
    train_command("celeba64")
