"""Train on CelebA at 64x64: ``python jobs/train_celeba64.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.options import train_door

if __name__ == "__main__":
    train_door("celeba64")
