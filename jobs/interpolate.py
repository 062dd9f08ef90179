"""Draw images between pairs of generated ones: ``python jobs/interpolate.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.edit.options import InterpolateOptions, check_interpolate

if __name__ == "__main__":
    run_job(
        InterpolateOptions(),
        "drl_dist.jobs.edit.driver:interpolate_run",
        check=check_interpolate,
        description="Draw rows of images that lead from one generated image to another; the same command resumes.",
        resumes=True,
    )
