"""Draw from one trained energy in many ways, and score what comes out.

    python -m benchmarks.chains --out FOLDER [--seeds 3 --budget 2.5 --images 1024 --groups Langevin,momentum]

Trains the row unet of benchmarks.quality on the digits, once for each seed, up to a budget of GFLOP for each training
image; then draws from the averaged weights in every way of benchmarks/chains/ways.py. The same command resumes. Needs
the extras `evaluation` and `prep`.

With --exact nothing is trained: energies are those of the training images with a little noise, which are known, so that
nothing but the chains is at fault for what is drawn. With --normal nothing is drawn either: the table tells how far
from normal data, whose variances are those of the training images along their principal components, each way ends with
exact energies; it takes a second and needs no --out.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from drl_dist.common.program import entry_point, stop_on_signals
from drl_dist.common.validation import local_of, refuse_broken, whole_number


def main(words: Sequence[str]) -> int:
    """Parse, then work; the exit status.

    Raises:
        UserError: something that the user gave cannot be used.
        Stopped: a signal ended it.
    """
    from benchmarks.chains.study import Study, normal_table, study
    from benchmarks.chains.ways import GROUPS

    parser = argparse.ArgumentParser(
        prog="benchmarks.chains",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="", help="folder of all results")
    parser.add_argument("--normal", action="store_true", help="compute what normal data become")
    parser.add_argument("--seeds", type=whole_number, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--budget", type=float, default=2.5, help="GFLOP for each training image")
    parser.add_argument("--images", type=whole_number, default=1024, help="samples that are scored in each way")
    parser.add_argument("--groups", default=",".join(GROUPS), help="of ways, separated by commas; all by default")
    parser.add_argument("--exact", action="store_true", help="take energies that are known")
    parser.add_argument("--threads", type=whole_number, default=1, help="of this process")
    given = parser.parse_args(words)
    groups = tuple(dict.fromkeys(name for name in given.groups.split(",") if name))
    refuse_broken(
        [
            ("--out", given.out, "a folder", bool(given.out) or given.normal),
            ("--groups", given.groups, f"some of {', '.join(GROUPS)}", bool(groups) and set(groups) <= set(GROUPS)),
            ("--seeds", given.seeds, "at least 1", given.seeds >= 1),
            ("--budget", given.budget, "a positive number", given.budget > 0 and math.isfinite(given.budget)),
            ("--images", given.images, "at least 64", given.images >= 64),
            ("--threads", given.threads, "at least 1", given.threads >= 1),
        ]
    )
    stop_on_signals()
    if given.normal:
        print(normal_table(groups))
        return 0
    asked = Study(
        out=local_of(given.out, "--out"),
        seeds=range(given.seeds),
        budget=given.budget,
        images=given.images,
        groups=groups,
        threads=given.threads,
        is_exact=given.exact,
    )
    print(study(asked))
    return 0


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
