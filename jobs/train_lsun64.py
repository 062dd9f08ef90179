"""Train on an LSUN category at 64x64: ``python jobs/train_lsun64.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.options import train_door

if __name__ == "__main__":
    train_door("lsun_church64", {"church_outdoor": "lsun_church64", "bedroom": "lsun_bedroom64"})
