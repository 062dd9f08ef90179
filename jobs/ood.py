"""Tell other images from a model's own by their log-density: ``python jobs/ood.py --help``."""

from __future__ import annotations

import sys

from drl_dist.cli import door, parse_options
from drl_dist.scores.options import OodOptions, check_ood


def main() -> int:
    """The command."""
    options = parse_options(
        OodOptions,
        OodOptions(),
        sys.argv[1:],
        description="AUROC between the log-densities f(y_0, t = 0) that a model gives to two sets of images.",
    )
    check_ood(options)
    # Heavy imports wait until the options are understood.
    from drl_dist.models import load_model
    from drl_dist.scores.ood import ood_run

    model = load_model(options.model, options.tracking_uri)
    return ood_run(options, model.experiment, model.ema, model.step)


if __name__ == "__main__":
    door(main)
