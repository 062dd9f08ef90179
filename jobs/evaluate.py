"""Score generated images by FID, KID and inception score: ``python jobs/evaluate.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.evaluate.options import EvaluateOptions, check_evaluate

if __name__ == "__main__":
    run_job(
        EvaluateOptions(),
        "drl_dist.jobs.evaluate.driver:evaluate_run",
        check=check_evaluate,
        description="Score generated images against real ones: FID, KID, precision, recall, inception score.",
        resumes=False,
    )
