"""Estimate log Z and the bits per dimension of images on Ray actors: ``python jobs/likelihood.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.likelihood.options import LikelihoodOptions, check_options

if __name__ == "__main__":
    run_job(
        LikelihoodOptions(),
        "drl_dist.jobs.likelihood.driver:likelihood_run",
        check=check_options,
        description="Estimates that bound log Z and the bits per dimension of images on average, from either side; "
        "the same command resumes.",
        resumes=True,
    )
