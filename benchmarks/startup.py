"""How long training takes to begin, and to begin again after a killed worker, in two checkouts side by side.

    python -m benchmarks.startup --before ../old --after . [--repeats 5] [--workers 2] [--cluster] [--json FILE]

Each checkout has its environment in `.venv`. Both train on the handwritten digits with a tiny network, in turns, so
that whatever else the machine does slows both. The job starts a Ray of its own, or with ``--cluster`` joins a running
one.

A start lasts from the command to the end of the first step of any rank, a restart from the SIGKILL of one worker to the
end of the first step of the workers after it. Processor seconds are those of the job, its Ray and all workers in that
time. Prints medians and ratios, and writes every figure as JSON where ``--json`` says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import figures_file
from drl_dist.common.places import path_here
from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number
from drl_dist.localhost import MlflowServer, RayHead, processes
from drl_dist.localhost.server import end_on_signals

LONGEST_WAIT = 300.0
"""Seconds in which a job must come to its first step."""
TINY = (
    "--model.width=8",
    "--model.time-embedding-dim=8",
    "--model.time-hidden-dim=16",
    "--mcmc.num-chain-steps=3",
    "--train.batch-size=8",
    "--train.num-steps=1000000",
    "--checkpoint.every-steps=50",
    "--tracking.num-samples=2",
    "--tracking.sample-every-steps=1000000",
)
MEASURES = ("start seconds", "start processor seconds", "restart seconds", "restart processor seconds")


class _Head(RayHead):
    """A Ray head of another checkout."""

    def __init__(self, python: Path, workers: int) -> None:
        super().__init__(num_cpus=workers)
        self._python = python

    def command(self) -> list[str]:
        return [str(self._python), *super().command()[1:]]

    def server_environment(self) -> dict[str, str]:
        environment = super().server_environment()
        return environment | {"PATH": os.pathsep.join([str(self._python.parent), environment["PATH"]])}


@dataclass(frozen=True)
class Checkout:
    """One of the two that are compared."""

    name: str
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ".venv" / "bin" / "python"


def main() -> int:
    """Parse, measure, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after"):
        parser.add_argument(f"--{name}", type=path_here, required=True, help="a checkout with its environment in .venv")
    parser.add_argument("--repeats", type=whole_number, default=5)
    parser.add_argument("--workers", type=whole_number, default=2)
    parser.add_argument("--cluster", action="store_true", help="join a running Ray instead of starting one")
    parser.add_argument("--json", type=figures_file, help="write the figures to this file, too")
    arguments = parser.parse_args()
    checkouts = [Checkout(name, getattr(arguments, name).resolve()) for name in ("before", "after")]
    for checkout in checkouts:
        if not (checkout.folder / "jobs" / "train_digits.py").is_file() or not checkout.python.exists():
            parser.error(f"--{checkout.name}: got {checkout.folder}, expected a checkout after `make setup`")
    end_on_signals()
    figures: dict[str, dict[str, list[float]]] = {one.name: {name: [] for name in MEASURES} for one in checkouts}
    with tempfile.TemporaryDirectory(prefix="drl-startup-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        # Each prepares its own: an earlier one does not read what a later one writes.
        data = {one.name: _digits(one, folder / f"digits-{one.name}") for one in checkouts}
        server = stack.enter_context(MlflowServer(folder / "mlflow"))
        heads = {
            one.name: stack.enter_context(_Head(one.python, arguments.workers)) if arguments.cluster else None
            for one in checkouts
        }
        for repeat in range(arguments.repeats):
            # In turns, and each one first every other time.
            for checkout in checkouts if repeat % 2 == 0 else checkouts[::-1]:
                name, head = f"{checkout.name}-{repeat}", heads[checkout.name]
                options = [f"--data={data[checkout.name]}", f"--storage={folder / 'runs'}", f"--run-name={name}", *TINY]
                options += [f"--num-workers={arguments.workers}", f"--loader.ledger-dir={folder / 'audit'}"]
                environment = _environment(checkout, server.environment(), head.environment() if head else {})
                with _job(checkout, options, environment, folder / f"{name}.log") as job:
                    found = _measure(job, head, folder / "audit" / name, folder / "runs" / name)
                for measure, value in zip(MEASURES, found, strict=True):
                    figures[checkout.name][measure].append(value)
                print(f"{name}: " + ", ".join(f"{m} {v:.2f}" for m, v in zip(MEASURES, found, strict=True)), flush=True)
    print(table(figures))
    if arguments.json:
        whole = {
            "machine": f"{os.cpu_count()} CPUs, {platform.processor() or platform.machine()}",
            "date": time.strftime("%Y-%m-%d"),
            "setting": {name: str(value) for name, value in vars(arguments).items() if name != "json"},
            "figures": figures,
            "ratios": {measure: ratio(figures, measure) for measure in MEASURES},
        }
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")
    return 0


def table(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Medians, the range of the values, and the ratio of the medians, as Markdown."""
    lines = ["| median (smallest to largest) | before | after | after / before |", "|---|---|---|---|"]
    for measure in MEASURES:
        cells = [
            f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for values in (figures[name][measure] for name in ("before", "after"))
        ]
        lines.append(f"| {measure} | {' | '.join(cells)} | {ratio(figures, measure):.2f} |")
    return "\n".join(lines)


def ratio(figures: Mapping[str, Mapping[str, Sequence[float]]], measure: str) -> float:
    """Of the medians, after over before."""
    return statistics.median(figures["after"][measure]) / statistics.median(figures["before"][measure])


def _digits(checkout: Checkout, folder: Path) -> Path:
    command = [str(checkout.python), "-m", "datasets_prep.digits", "--out", str(folder), "--workers", "1"]
    subprocess.run(command, cwd=checkout.folder, env=_environment(checkout), check=True)
    return folder


def _environment(checkout: Checkout, *parts: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without the user's own servers, for a command of a checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"PYTHONPATH": str(checkout.folder), "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    for part in parts:
        environment |= part
    return environment


@contextmanager
def _job(
    checkout: Checkout, options: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The training command; it, and the Ray that it has started, are ended with the body."""
    command = [str(checkout.python), "jobs/train_digits.py", "--setting", "t6", *options]
    with log.open("wb") as output:
        job = subprocess.Popen(command, cwd=checkout.folder, env=dict(environment), stdout=output, stderr=output)
    try:
        yield job
    except TimeoutError:
        print(log.read_text(), file=sys.stderr, flush=True)
        raise
    finally:
        started = processes.tree(job.pid)
        job.terminate()
        try:
            job.wait(60)
        except subprocess.TimeoutExpired:
            processes.end(started, signal.SIGKILL)
            job.wait()
        if not processes.wait_until_gone(started, 30):
            processes.end(started, signal.SIGKILL)


def _measure(
    job: subprocess.Popen[bytes], head: RayHead | None, audit: Path, run: Path
) -> tuple[float, float, float, float]:
    """What `MEASURES` names, of a job that has just been started."""
    usage = _Usage([job.pid, *([head.pid] if head else [])])
    began, used = time.time(), 0.0 if head is None else usage.seconds()
    start = _first_step(audit, began - 1, job, usage) - began, usage.seconds() - used
    _wait(lambda: any(run.glob("checkpoint_*/checksums.json")), job, usage)
    # Ray's controller knows of the checkpoint, and whatever continues behind the first steps has ended.
    time.sleep(10)
    victims = [one for root in usage.roots for one in _titled(root, "ray::RayTrainWorker")]
    killed, used = time.time(), usage.seconds()
    os.kill(victims[-1], signal.SIGKILL)
    return *start, _first_step(audit, killed, job, usage) - killed, usage.seconds() - used


class _Usage:
    """Processor seconds of processes, and of all that were below them whenever it was asked."""

    def __init__(self, roots: Sequence[int]) -> None:
        self.roots = roots
        self._ticks: dict[processes.Process, int] = {}

    def seconds(self) -> float:
        """Used so far. Most of Ray's processes are waited for by nobody, who would inherit what they have used."""
        for process in {one for root in self.roots for one in processes.tree(root)}:
            try:
                fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            self._ticks[process._replace(parent=0)] = int(fields[11]) + int(fields[12])
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")


def _first_step(audit: Path, moment: float, job: subprocess.Popen[bytes], usage: _Usage) -> float:
    """When workers that were started after `moment` had made a step, in seconds since 1970."""
    found: list[float] = []

    def is_made() -> bool:
        for path in audit.glob("*.jsonl"):
            # The name ends with the nanosecond at which the file was made; a line is written as a step begins.
            if int(path.stem.rsplit("-", 1)[1]) / 1e9 > moment:
                lines = path.read_text().split("\n")
                if len(lines) > 2:
                    found.append(json.loads(lines[1])["time"])
        return bool(found)

    _wait(is_made, job, usage)
    return min(found)


def _wait(condition: Callable[[], bool], job: subprocess.Popen[bytes], usage: _Usage) -> None:
    deadline = time.monotonic() + LONGEST_WAIT
    while not condition():
        usage.seconds()
        if job.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"the job came to no step within {LONGEST_WAIT:.0f} s, or ended: {job.poll()}")
        time.sleep(0.1)


def _titled(root: int, title: str) -> list[int]:
    """Process ids below `root` whose title begins so."""
    found: list[int] = []
    for process in processes.tree(root):
        try:
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if line.startswith(title.encode()):
            found.append(process.pid)
    return found


if __name__ == "__main__":
    entry_point(main)
