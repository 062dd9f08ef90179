"""Train on handwritten digits and sample, start to end, on this machine: ``make demo``."""

from __future__ import annotations

from pathlib import Path

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.demo import DemoOptions, demo

if __name__ == "__main__":
    run_job(
        DemoOptions(),
        lambda options: demo(options, Path(__file__).resolve().parents[1]),
        description="Train on handwritten digits and sample, on this machine; run again, it uses what is there.",
        resumes=False,
    )
