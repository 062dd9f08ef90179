"""Generate images from a trained model on Ray actors: ``python jobs/sample.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.sample.options import SampleOptions, check_options

if __name__ == "__main__":
    run_job(
        SampleOptions(),
        "drl_dist.jobs.sample.driver:sample_run",
        check=check_options,
        description="Generate images from a trained model; the same command resumes.",
        resumes=True,
    )
