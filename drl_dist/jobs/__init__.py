"""The jobs, a folder for each command. What Ray reads from the environment at its import is set here."""

from __future__ import annotations

import os

from drl_dist.common.proxies import spare_loopback
from drl_dist.localhost.ray_head import IDLE_FIRST, LOOPBACK_ONLY

# Ray reads these when it is imported, which every module of this package does.
if not os.environ.get("RAY_ADDRESS"):
    # No cluster to join: the one that `ray.init` starts must not listen on the network.
    os.environ.update(LOOPBACK_ONLY)
    for name, value in IDLE_FIRST.items():
        os.environ.setdefault(name, value)
# Ray drops lines that resemble earlier ones, which all progress lines do.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
spare_loopback(os.environ)
