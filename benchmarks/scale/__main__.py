"""Run the real order, reading, audits, drivers, manifests and retention for 1 to 4096 simulated workers.

    python -m benchmarks.scale --out FOLDER [--workers 1,4,16,64,256,1024,4096] [--before FILE]

No cluster is started. Storage is this process's memory, which counts requests; data are shards of 8 x 8 images that
are made as they are read, as many as LSUN bedroom has. Where all workers do the same, a few of them, or one node of
eight, are stepped and the total is computed. Writes table.md, scale.json and scale.png, with those of an earlier
scale.json beside them where ``--before`` names it. Ends with status 1 if a cost grows faster than n log n.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

from drl_dist.common.program import entry_point
from drl_dist.common.validation import local_of, refuse_broken, whole_number

RESULT, TABLE, PICTURE = "scale.json", "table.md", "scale.png"


def main(words: Sequence[str]) -> int:
    """Parse, measure, write; the exit status.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--workers", default="1,4,16,64,256,1024,4096", help="numbers, separated by commas")
    parser.add_argument("--shards", type=whole_number, default=10_000, help="of the data set")
    parser.add_argument("--samples", type=whole_number, default=300, help="images of a shard")
    parser.add_argument(
        "--units", type=whole_number, default=50_000, help="shards of a sampling job, with most workers"
    )
    parser.add_argument("--before", help="scale.json of an earlier start, to be drawn beside this one")
    given = parser.parse_args(words)
    numbers = [int(text) if text.isdecimal() else 0 for text in given.workers.split(",")]
    refuse_broken(
        [
            ("--workers", given.workers, "two whole numbers or more, rising", _rise(numbers)),
            ("--shards", given.shards, "8 to 100000", 8 <= given.shards <= 100_000),
            ("--samples", given.samples, "1 to 100000", 1 <= given.samples <= 100_000),
            ("--units", given.units, "16 to 100000", 16 <= given.units <= 100_000),
        ]
    )
    out = local_of(given.out, "--out")
    before = {} if given.before is None else _earlier(given.before)
    from benchmarks.results import open_results

    open_results(parser, out, [RESULT], [TABLE, PICTURE])
    from benchmarks.scale.growth import picture, table
    from benchmarks.scale.jobs import measure_jobs, tracking_calls
    from benchmarks.scale.reading import Sizes, measure_reading
    from benchmarks.scale.storage import counted_storage

    def tell(line: str) -> None:
        print(f"{time.process_time():.0f} s of a processor: {line}", flush=True)

    with counted_storage() as bucket:
        costs, index = measure_reading(bucket, numbers, Sizes(given.shards, given.samples), tell)
        costs |= measure_jobs(bucket, numbers, given.units, tell)
    tracking = tracking_calls()
    text = table(costs)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0],
        "index": index,
        "tracking": tracking,
        "costs": {
            key: {"title": cost.title, "unit": cost.unit, "of": cost.of, "exponent": cost.exponent}
            | {"amounts": cost.amounts}
            for key, cost in costs.items()
        },
    }
    (out / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    (out / TABLE).write_text(text + "\n")
    caption = f"Costs of 1 to {numbers[-1]} simulated workers, all together; {given.shards * given.samples:,} images"
    (out / PICTURE).write_bytes(picture(costs, before, caption))
    print(text)
    print(f"index: {index}\nMLflow, whatever the number of workers: {tracking}")
    return int(not all(cost.is_fine for cost in costs.values()))


def _rise(numbers: Sequence[int]) -> bool:
    return len(numbers) > 1 and numbers[0] >= 1 and all(one < other for one, other in pairwise(numbers))


def _earlier(name: str) -> dict[str, dict[int, float]]:
    """The amounts in a result."""
    text = local_of(name, "--before").read_text()
    return {
        key: {int(number): float(amount) for number, amount in cost["amounts"].items()}
        for key, cost in json.loads(text)["costs"].items()
    }


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
