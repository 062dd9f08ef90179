"""Score samples against the arithmetic and the time that training them took, for named settings.

    python -m benchmarks.quality --out FOLDER [--data digits --settings preset,ddpm --seeds 3 --budget 7]

Each setting is trained in memory, from each seed, up to a budget of floating-point operations of its networks, which
are counted over a real step: chain and update, two for each multiply-add. At 1/10, 1/6, 1/3 and all of the budget,
samples of the averaged weights are scored against held-out images. The same command resumes; settings and seeds may be
added to a folder, everything else stays as it was. Needs the extras `evaluation` and `prep`.

With --calibration the settings are trained on Gaussian images instead, and the learned variances are held against the
true ones (benchmarks/quality/calibration.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.quality.options import parse
from drl_dist.common.program import entry_point, stop_on_signals


def main(words: Sequence[str]) -> int:
    """Parse, then work; the exit status.

    Raises:
        UserError: something that the user gave cannot be used.
        Stopped: a signal ended it.
    """
    options = parse(words, __doc__ or "")
    # Behind the check of the options, for it takes seconds to import.
    from benchmarks.quality.work import calibrate_all, compare_all

    stop_on_signals()
    print((calibrate_all if options.calibration else compare_all)(options))
    return 0


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
