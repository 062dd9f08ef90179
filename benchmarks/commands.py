"""How much processor time commands take that start nothing, in two checkouts side by side.

    python -m benchmarks.commands --before ../old --after . [--repeats 5]

Each checkout has its environment in `.venv`. Every command's ``--help``, and ``--dry-run`` of a training and of a
sweep, are run in turns. Prints the median seconds of a processor (user and system, children included) as a table; a
dash where a checkout has no such command or refuses it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from drl_dist.common.places import path_here
from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number

DRY_RUNS = (
    ("jobs/train_digits.py", "--data", "file:///data", "--storage", "file:///runs", "--run-name", "one", "--dry-run"),
    ("jobs/sweep.py", "--preset", "digits", "--dry-run"),
)


def main() -> int:
    """Parse, measure, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after"):
        parser.add_argument(f"--{name}", type=path_here, required=True, help="a checkout with its environment in .venv")
    parser.add_argument("--repeats", type=whole_number, default=5)
    arguments = parser.parse_args()
    checkouts: list[Path] = [arguments.before.resolve(), arguments.after.resolve()]
    for checkout in checkouts:
        if not (checkout / ".venv" / "bin" / "python").exists():
            parser.error(f"got {checkout}, expected a checkout after `make setup`")
    print("| seconds of a processor, median | before | after |\n|---|---|---|")
    for command in commands(checkouts):
        taken: list[list[float]] = [[], []]
        for repeat in range(arguments.repeats):
            # In turns, and each one first every other time.
            for at in (0, 1) if repeat % 2 == 0 else (1, 0):
                seconds = processor_seconds(checkouts[at], command)
                if seconds is not None:
                    taken[at].append(seconds)
        cells = [f"{statistics.median(values):.1f}" if values else "—" for values in taken]
        name = " ".join(word for word in command if word.endswith(".py") or word.startswith(("-m", "drl", "datasets")))
        print(f"| `{name} {command[-1]}` | {' | '.join(cells)} |", flush=True)
    return 0


def commands(checkouts: Sequence[Path]) -> list[tuple[str, ...]]:
    """Every command of either checkout with ``--help``, then the dry runs."""
    jobs = sorted({path.name for checkout in checkouts for path in (checkout / "jobs").glob("*.py")})
    tools = sorted(
        {path.stem for one in checkouts for path in (one / "datasets_prep").glob("*.py") if path.name[0] != "_"}
    )
    helps = [(f"jobs/{name}", "--help") for name in jobs]
    helps += [("-m", f"datasets_prep.{name}", "--help") for name in tools]
    helps += [("-m", "drl_dist", "--help")]
    return [*helps, *DRY_RUNS]


def processor_seconds(checkout: Path, command: Sequence[str]) -> float | None:
    """User and system time of the command and its children; None where it does not end with status 0."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = subprocess.run(
        [str(checkout / ".venv" / "bin" / "python"), *command],
        cwd=checkout,
        env=environment | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if status:
        return None
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    entry_point(main)
