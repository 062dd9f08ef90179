"""Generate images from a trained model on Ray actors: ``python jobs/sample.py --help``."""

from __future__ import annotations

import sys

from drl_dist.cli import door, parse_options
from drl_dist.on_ray.sample_options import SampleOptions, check_options
from drl_dist.stopping import stop_on_signals


def main() -> int:
    """The command."""
    options = parse_options(
        SampleOptions,
        SampleOptions(),
        sys.argv[1:],
        description="Generate images from a trained model; the same command resumes.",
    )
    check_options(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.on_ray.sample_driver import sample_run

    stop_on_signals()
    return sample_run(options)


if __name__ == "__main__":
    door(main)
