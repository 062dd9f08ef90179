"""Run long chains of a trained model and see whether images stay images: ``python jobs/long_run.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.long_run.options import LongRunOptions, check_options

if __name__ == "__main__":
    run_job(
        LongRunOptions(),
        "drl_dist.jobs.long_run.driver:long_run",
        check=check_options,
        description="Long-run chains of a trained model: step sizes, images of several chain lengths, diagnostics; "
        "the same command resumes.",
        resumes=True,
    )
