"""Score generated images by FID, KID and inception score: ``python jobs/evaluate.py --help``."""

from __future__ import annotations

import sys

from drl_dist.jobs.common.options import door, parse_options
from drl_dist.jobs.evaluate.options import EvaluateOptions, check_evaluate


def main() -> int:
    """The command."""
    options = parse_options(
        EvaluateOptions,
        EvaluateOptions(),
        sys.argv[1:],
        description="Score generated images against real ones: FID, KID, inception score.",
    )
    check_evaluate(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.jobs.evaluate.driver import evaluate_run

    return evaluate_run(options)


if __name__ == "__main__":
    door(main)
