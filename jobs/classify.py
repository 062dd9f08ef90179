"""Infer the labels of images by the energies of a model that knows labels: ``python jobs/classify.py --help``."""

from __future__ import annotations

from drl_dist.jobs.classify.options import ClassifyOptions, check_classify
from drl_dist.jobs.common.entry import run_job

if __name__ == "__main__":
    run_job(
        ClassifyOptions(),
        "drl_dist.jobs.classify.driver:classify_run",
        check=check_classify,
        description="Classes or attributes by Bayes' rule over f(y, t, c), their calibration, and AUROC against other "
        "images; the same command resumes.",
        resumes=True,
    )
