"""Train on scikit-learn's handwritten digits: ``python jobs/train_digits.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.options import train_door

if __name__ == "__main__":
    train_door("digits")
