"""Train on scikit-learn's handwritten digits: ``python jobs/train_digits.py --help``."""

from __future__ import annotations

from drl_dist.jobs.train.options import train_command

if __name__ == "__main__":
    train_command("digits")
