"""Train on an LSUN category at 128x128: ``python jobs/train_lsun128.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.options import train_door

if __name__ == "__main__":
    train_door("lsun_church128", {"church_outdoor": "lsun_church128", "bedroom": "lsun_bedroom128"})
