"""Train on images of your own, a preset, a config, or a run that is to go on: ``python jobs/train.py --help``."""

from __future__ import annotations

from drl_dist.jobs.train.own_options import own_train_command

if __name__ == "__main__":
    own_train_command()
