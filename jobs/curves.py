"""Draw the curves of a tracked run as a PNG: ``python jobs/curves.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.tracking.curves_options import CurvesOptions

if __name__ == "__main__":
    run_job(CurvesOptions(), "drl_dist.tracking.curves:curves", description=__doc__ or "", resumes=False)
