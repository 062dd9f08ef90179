"""The process that does the work, part after part until one fails; `python -m benchmarks.accelerator` starts it."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accelerator.parts import PARTS, UNUSABLE, Clock
from benchmarks.accelerator.record import append, read
from drl_dist.common.program import entry_point


def main(words: Sequence[str]) -> int:
    """Do the parts; 0 when all are done, 1 after one that failed, `UNUSABLE` where another process is to go on."""
    parser = argparse.ArgumentParser(prog="benchmarks.accelerator.worker", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--parts", required=True)
    parser.add_argument("--until", type=float, required=True)
    given = parser.parse_args(words)
    import torch

    from benchmarks.accelerator.work import UnusableError, Work

    remaining, whole = given.parts.split(","), Clock(given.until)
    while remaining:
        name = remaining[0]
        clock, begun = whole.share(name, remaining), time.monotonic()
        append(given.out, name, "begin", until=clock.until)
        print(f"{PARTS[name].title} ({clock.left():.0f} s; {whole.left():.0f} s left in all)", flush=True)
        known = read(given.out)[name].rows
        try:
            status, message = _done(Work(name, given.out, torch.device(given.device), clock, known))
        except UnusableError as error:
            print(f"  this process cannot use the device any more ({error}); another one goes on", flush=True)
            return UNUSABLE
        append(given.out, name, "end", status=status, message=message, seconds=time.monotonic() - begun)
        if message:
            print(f"  {status}: {message}", flush=True)
        if status == "failed":
            return 1
        del remaining[0]
    return 0


def _done(work: object) -> tuple[str, str]:
    """Do one part; how it ended, and why."""
    from benchmarks.accelerator.work import Skipped, UnusableError, Work, free_memory, in_words

    assert isinstance(work, Work)
    try:
        importlib.import_module(f"benchmarks.accelerator.{work.name}").run(work)
        free_memory(work.device)
    except UnusableError:
        raise
    except Skipped as reason:
        return "skipped", str(reason)
    except Exception as error:  # noqa: BLE001 the other parts go on, and the report has the message
        traceback.print_exc()
        return "failed", in_words(error)
    return "done", ""


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
