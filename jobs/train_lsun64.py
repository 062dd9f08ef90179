"""Train on an LSUN category at 64x64: ``python jobs/train_lsun64.py --help``."""

from __future__ import annotations

from drl_dist.jobs.train.options import train_command

if __name__ == "__main__":
    train_command("lsun_church64", {"church_outdoor": "lsun_church64", "bedroom": "lsun_bedroom64"})
