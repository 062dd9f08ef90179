"""Fill in, denoise or enlarge images with a trained model: ``python jobs/inpaint.py --help``."""

from __future__ import annotations

from drl_dist.jobs.common.entry import run_job
from drl_dist.jobs.edit.options import InpaintOptions, check_inpaint

if __name__ == "__main__":
    run_job(
        InpaintOptions(),
        "drl_dist.jobs.edit.driver:inpaint_run",
        check=check_inpaint,
        description="Fill in what a mask hides of images, take their noise away, or make them larger; "
        "the same command resumes.",
        resumes=True,
    )
