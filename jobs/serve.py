"""Serve a trained model to a browser and to programs, on Ray Serve: ``python jobs/serve.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.serve.options import ServeOptions, check_serve

if __name__ == "__main__":
    run_job(
        ServeOptions(),
        "drl_dist.jobs.serve.driver:serve_model",
        check=check_serve,
        description="Serve a trained model: a page to play with it, and an API, until it is stopped.",
        resumes=False,
    )
