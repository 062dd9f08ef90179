"""Measure what a GPU gives, in minutes: equality, rates, memory, gaps, the data pipeline, and a short training.

    python -m benchmarks.accelerator --minutes 9 --out FOLDER [--device cuda --parts machine,equality ...]

Results are written as they come, in FOLDER/results.jsonl, and after every part as FOLDER/report.json and report.md,
with pictures at the end, so that a run that is cut short keeps what it has. The work is done in a process of its
own: a part that fails, or takes far too long, is ended and recorded, and the next one goes on. torch and numpy are
enough, except for the data pipeline (the extra `data`) and for pictures (matplotlib, Pillow). With --device cpu
everything is tried in tiny sizes, and what needs CUDA says so. `python -m benchmarks.accelerator.page FOLDER` takes the
tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.accelerator.parts import PARTS, Clock
from benchmarks.accelerator.record import RESULTS
from benchmarks.accelerator.report import write_report
from benchmarks.accelerator.supervisor import supervise
from drl_dist.common.errors import UserError
from drl_dist.common.program import SIGNALS, entry_point
from drl_dist.common.validation import local_of, refuse_broken

_FOR_REPORT = 10.0
"""Seconds that are kept for the last report."""
DEVICES = ("cuda", "cpu")


def main(words: Sequence[str]) -> int:
    """Parse, measure, report; 1 if some part failed.

    Raises:
        UserError: an option cannot be used, or there is no GPU.
    """
    parser = argparse.ArgumentParser(
        prog="benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, 9 by default")
    parser.add_argument("--out", required=True, help="a new folder for the results")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the command in tiny sizes")
    parser.add_argument("--parts", default=",".join(PARTS), help="separated by commas")
    given = parser.parse_args(words)
    parts = [name for name in given.parts.split(",") if name]
    is_known = bool(parts) and set(parts) <= PARTS.keys() and len(set(parts)) == len(parts)
    refuse_broken(
        [
            ("--minutes", given.minutes, "0.5 to 600", 0.5 <= given.minutes <= 600),
            ("--device", given.device, "cuda or cpu", given.device in DEVICES),
            ("--parts", given.parts, f"some of {', '.join(PARTS)}, each once", is_known),
        ]
    )
    clock = Clock(time.monotonic() + 60 * given.minutes)
    if given.device == "cuda":
        _check_cuda()
    folder = _new_folder(local_of(given.out, "option --out"))
    _interrupt_on_signals()
    ordered = [name for name in PARTS if name in parts]
    try:
        failed = supervise(folder, ordered, given.device, Clock(clock.until - _FOR_REPORT), clock)
    finally:
        # First without pictures, for which whoever ends the command may not wait.
        write_report(folder, with_pictures=False)
        print(f"report: {write_report(folder)}", flush=True)
    return int(failed)


def _interrupt_on_signals() -> None:
    """Let whatever asks the command to end be as Ctrl-C is: the report is written, and nothing resumes."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _interrupt)


def _interrupt(_signum: int, _frame: FrameType | None) -> NoReturn:
    # Once: timeout, and make, send another one to the whole group.
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "option --device",
            got=f"cuda, with a torch {torch.__version__} that can use no GPU",
            expected="a GPU and a torch made for CUDA",
            remedy="look at nvidia-smi and install torch for its driver, or try the command with --device cpu",
        )


def _new_folder(path: Path) -> Path:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        kind = "a run of before" if (path / RESULTS).is_file() else "something else"
        raise UserError(
            "option --out", got=f"{path} with {kind}", expected="a new or an empty folder", remedy="choose another"
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
