"""Train on handwritten digits and sample, start to end, on this machine: ``make demo``."""

from __future__ import annotations

import sys
from pathlib import Path

from drl_dist.jobs.common.options import door, parse_options
from drl_dist.jobs.demo import DemoOptions, demo


def main() -> int:
    """The command."""
    options = parse_options(
        DemoOptions,
        DemoOptions(),
        sys.argv[1:],
        description="Train on handwritten digits and sample, on this machine; run again, it uses what is there.",
    )
    return demo(options, Path(__file__).resolve().parents[1])


if __name__ == "__main__":
    door(main)
