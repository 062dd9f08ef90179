"""Fill in, denoise or enlarge images with a trained model: ``python jobs/inpaint.py --help``."""

from __future__ import annotations

import sys

from drl_dist.jobs.common.options import door, parse_options
from drl_dist.jobs.edit.options import InpaintOptions, check_inpaint


def main() -> int:
    """The command."""
    options = parse_options(
        InpaintOptions,
        InpaintOptions(),
        sys.argv[1:],
        description="Fill in what a mask hides of images, take their noise away, or make them larger.",
    )
    check_inpaint(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.jobs.edit.driver import inpaint_run

    return inpaint_run(options)


if __name__ == "__main__":
    door(main)
