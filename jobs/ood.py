"""Tell other images from a model's own by their log-density: ``python jobs/ood.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.ood.options import OodOptions, check_ood

if __name__ == "__main__":
    run_job(
        OodOptions(),
        "drl_dist.jobs.ood.driver:ood_run",
        check=check_ood,
        description="AUROC between the log-densities f(y_0, t = 0) that a model gives to two sets of images; "
        "the same command resumes.",
        resumes=True,
    )
