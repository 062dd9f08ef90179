"""Shards of scikit-learn's bundled handwritten digits: 1797 grey images of 8x8 pixels, nothing to download."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from datasets_prep._options import PrepOptions
from drl_dist.common.imports import no_collection
from drl_dist.common.program import entry_point
from drl_dist.jobs.common.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Options(PrepOptions):
    """Options of the digits."""

    resolution: int = 8
    """Height and width of the images, in pixels; 8 is their own."""
    shard_size: int = 256
    """Images per shard."""
    workers: int = 1
    """Number of parallel processes that make shards; starting more takes longer than the work."""


def main() -> int:
    """Run the command; returns its exit status."""
    options = parse_options(Options, Options(), sys.argv[1:], description=__doc__ or "")
    with no_collection():
        from datasets_prep.sources.digits import prepare

    return prepare(options)


if __name__ == "__main__":
    entry_point(main)
