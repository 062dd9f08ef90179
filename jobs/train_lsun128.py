"""Train on an LSUN category at 128x128: ``python jobs/train_lsun128.py --help``."""

from __future__ import annotations

from drl_dist.jobs.train.options import train_command

if __name__ == "__main__":
    train_command("lsun_church128", {"church_outdoor": "lsun_church128", "bedroom": "lsun_bedroom128"})
