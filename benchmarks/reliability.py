"""The table of docs/reliability.md: what a run loses, and how soon it recovers, when its processes are killed.

    python -m benchmarks.reliability --out FOLDER [--parts exact workers goodput goodput_auto sampling] [--kills 95]

Starts a Ray head and an MLflow server of its own on 127.0.0.1, trains on scikit-learn's digits and samples with real
jobs, and kills their processes with SIGKILL at moments drawn from a seed. Results are stored in FOLDER part by part;
existing parts are not measured again. It takes about 90 minutes on two cores, which should be otherwise idle.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from pyarrow import parquet

from benchmarks.faults import Command, Fault, sample_under_kills, train_under_kills
from benchmarks.results import open_results
from drl_dist.checkpoints.format import PARTS, part_file
from drl_dist.checkpoints.storage import checkpoint_name
from drl_dist.common.places import path_here
from drl_dist.common.program import entry_point
from drl_dist.common.validation import whole_number
from drl_dist.data.audit import audit, read_audit_log
from drl_dist.data.manifest import MANIFEST_NAME
from drl_dist.localhost import MlflowServer, RayHead
from drl_dist.tracking.metrics import plain_name

ROOT = Path(__file__).resolve().parents[1]
BATCH, NUM_DIGITS = 16, 1797
EXACT_STEPS, EXACT_EVERY = 4000, 10
GOODPUT_STEPS, GOODPUT_EVERY, KILL_EVERY = 2200, 100, 60.0
CHANGES = ((1, 150), (2, 300), (1, 450))
"""Workers, and the step up to which they train."""
NUM_IMAGES = 10_000
TINY = (
    "--model.width=8 --model.time-embedding-dim=8 --model.time-hidden-dim=16 --mcmc.num-chain-steps=10 "
    f"--train.batch-size={BATCH} --tracking.num-samples=4 --tracking.sample-every-steps=1000000"
).split()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Servers and folders of the benchmark."""

    out: Path
    head: RayHead
    environment: dict[str, str]
    tracking_uri: str
    seed: int

    def training(self, name: str, workers: int, steps: int, every: int | str, *more: str) -> Command:
        """A training job on digits with an audit log."""
        words = [
            "jobs/train_digits.py",
            "--setting=t6",
            f"--data={self.out / 'digits'}",
            f"--storage={self.out / 'runs'}",
            f"--run-name={name}",
            f"--num-workers={workers}",
            f"--train.num-steps={steps}",
            f"--checkpoint.every-steps={every}",
            f"--loader.ledger-dir={self.out / 'ledger'}",
            *more,
        ]
        return Command(words=words, environment=self.environment, log=self.out / f"{name}.log")

    def run_url(self, name: str) -> str:
        """Folder of a run."""
        return str(self.out / "runs" / name)

    def audit_log(self, name: str) -> Path:
        """Folder of a run's audit log."""
        return self.out / "ledger" / name

    def weights(self, name: str, step: int) -> dict[str, str]:
        """SHA-256 of weights, moving average and optimiser of a run at a step."""
        folder = self.out / "runs" / name / checkpoint_name(step)
        return {part: hashlib.sha256((folder / part_file(part)).read_bytes()).hexdigest() for part in PARTS}


def exact(bench: Bench, kills: int, drivers: int) -> dict[str, Any]:
    """Compare a run whose workers and drivers are killed with the same run undisturbed."""
    chooser = random.Random(bench.seed)
    alone = bench.training("alone", 2, EXACT_STEPS, EXACT_EVERY, *TINY)
    alone.start()
    alone.wait(1800)
    kinds = ["worker"] * kills + ["driver"] * drivers
    chooser.shuffle(kinds)
    killed = bench.training("killed", 2, EXACT_STEPS, EXACT_EVERY, *TINY)
    faults = train_under_kills(
        bench.head,
        killed,
        bench.audit_log("killed"),
        chooser,
        kinds,
        pause=lambda: chooser.uniform(0.5, 3.5),
        run_url=bench.run_url("killed"),
    )
    sizes = {"num_steps": EXACT_STEPS, "batch_size": BATCH, "num_samples": NUM_DIGITS}
    straight = audit(read_audit_log(bench.audit_log("alone")), **sizes)
    found = audit(read_audit_log(bench.audit_log("killed")), **sizes)
    return {
        "faults": [dataclasses.asdict(fault) for fault in faults],
        "is_bit_identical": bench.weights("alone", EXACT_STEPS) == bench.weights("killed", EXACT_STEPS),
        "has_same_pixels": straight.crc32 == found.crc32,
        **{name: getattr(found, f"num_{name}") for name in ("steps", "lost", "twice", "made_again", "changed")},
    }


def workers(bench: Bench) -> dict[str, Any]:
    """Compare the order of samples under a changing number of workers with that of one worker throughout."""
    steps = CHANGES[-1][1]
    names = {"one": [(1, steps)], "changing": CHANGES}
    for name, parts in names.items():
        for number, last in parts:
            job = bench.training(name, number, last, 150, *TINY)
            job.start()
            job.wait(900)
    sizes = {"num_steps": steps, "batch_size": BATCH, "num_samples": NUM_DIGITS}
    one, changing = (audit(read_audit_log(bench.audit_log(name)), **sizes) for name in names)
    places = [_places(bench.audit_log(name)) for name in names]
    return {
        "workers": [number for number, _ in CHANGES],
        "steps": steps,
        "has_same_order": places[0] == places[1],
        "has_same_pixels": one.crc32 == changing.crc32,
        "lost": changing.num_lost,
        "twice": changing.num_twice,
    }


def _places(ledger: Path) -> dict[int, tuple[int, int]]:
    """Position to shard and sample."""
    return {
        position: (shard, sample)
        for line in read_audit_log(ledger)
        for position, shard, sample in zip(line.positions, line.shards, line.samples, strict=True)
    }


def goodput(bench: Bench) -> dict[str, Any]:
    """The digits preset with a worker killed every minute, and a checkpoint every so many steps."""
    return _under_kills(bench, "goodput", GOODPUT_EVERY)


def goodput_auto(bench: Bench) -> dict[str, Any]:
    """The same with checkpoints as often as machines that live a minute want them."""
    return _under_kills(bench, "goodput_auto", "auto", f"--checkpoint.machine-lifetime-hours={KILL_EVERY / 3600}")


def _under_kills(bench: Bench, name: str, every: int | str, *more: str) -> dict[str, Any]:
    chooser = random.Random(bench.seed + 1)
    more = ("--tracking.sample-every-steps=1000000", "--train.batch-size=32", *more)
    job = bench.training(name, 2, GOODPUT_STEPS, every, *more)
    faults = train_under_kills(
        bench.head,
        job,
        bench.audit_log(name),
        chooser,
        ["worker"] * 60,
        pause=lambda: KILL_EVERY - 10.0,
        run_url=bench.run_url(name),
    )
    lines = [line for line in read_audit_log(bench.audit_log(name)) if line.rank == 0]
    begun = {line.step: line.time for line in lines}
    seconds = [begun[step + 1] - begun[step] for step in begun if step + 1 in begun]
    wall = lines[-1].time - lines[0].time
    kept = statistics.median(seconds) * (len(begun) - 1)
    run = _tracked(bench, name)
    return {
        "faults": [dataclasses.asdict(fault) for fault in faults],
        "seconds": wall,
        "step_seconds": statistics.median(seconds),
        "every_steps": run.get("checkpoint_every_steps", every),
        "goodput": kept / wall,
        "checkpoint_stall_fraction": run.get("checkpoint_stall_fraction"),
    }


def _tracked(bench: Bench, name: str) -> dict[str, float]:
    client = MlflowClient(bench.tracking_uri)
    experiment = client.get_experiment_by_name("drl_dist")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    return {plain_name(name): value for name, value in run.data.metrics.items()}


def sampling(bench: Bench) -> dict[str, Any]:
    """Compare 10,000 images from 1, 2 and 3 workers, killed at random, with those of an undisturbed job."""
    chooser = random.Random(bench.seed + 2)
    model = bench.out / "runs" / "alone"
    told: dict[str, Any] = {"images": NUM_IMAGES}
    reference: dict[str, str] = {}
    for label, number, kills in (("alone", 2, 0), ("1", 1, 8), ("2", 2, 12), ("3", 3, 16)):
        out = bench.out / "samples" / label
        words = [
            "jobs/sample.py",
            f"--model={model}",
            f"--out={out}",
            f"--num-images={NUM_IMAGES}",
            f"--num-workers={number}",
            "--shard-size=100",
            "--batch-size=100",
        ]
        job = Command(words=words, environment=bench.environment, log=bench.out / f"samples-{label}.log")
        began = time.monotonic()
        done = sample_under_kills(bench.head, job, chooser, kills)
        files = {
            str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(out.rglob("*"))
            if path.is_file()
        }
        reference = reference or files
        told[label] = {
            "workers": number,
            "kills": done,
            "seconds": time.monotonic() - began,
            "rows": parquet.read_metadata(out / MANIFEST_NAME).num_rows,
            "is_identical": files == reference,
        }
    return told


PARTS_OF_BENCH = {
    "exact": exact,
    "workers": workers,
    "goodput": goodput,
    "goodput_auto": goodput_auto,
    "sampling": sampling,
}


def main() -> int:
    """Parse, measure what is missing, print the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_here, required=True)
    parser.add_argument("--parts", nargs="+", default=list(PARTS_OF_BENCH), choices=list(PARTS_OF_BENCH))
    parser.add_argument("--kills", type=whole_number, default=95, help="of workers, in the part `exact`")
    parser.add_argument("--drivers", type=whole_number, default=6, help="kills of drivers, in the part `exact`")
    parser.add_argument("--seed", type=whole_number, default=0)
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    open_results(parser, out, [f"{name}.json" for name in PARTS_OF_BENCH], ["table.md"])
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        bench: Bench | None = None
        for name in arguments.parts:
            place = out / f"{name}.json"
            if not place.exists():
                bench = bench or _prepare(stack, out, arguments.seed)
                options = {"kills": arguments.kills, "drivers": arguments.drivers} if name == "exact" else {}
                print(f"{name}: under way; output of its jobs in {out}/*.log", flush=True)
                told = PARTS_OF_BENCH[name](bench, **options)
                place.write_text(json.dumps(told, indent=2) + "\n")
            results[name] = json.loads(place.read_text())
    text = table(results)
    (out / "table.md").write_text(text)
    print(text)
    return 0


def _prepare(stack: ExitStack, out: Path, seed: int) -> Bench:
    prepare = [sys.executable, "-m", "datasets_prep.digits", "--resolution", "8", "--out", str(out / "digits")]
    subprocess.run(prepare, cwd=ROOT, check=True)
    mlflow = stack.enter_context(MlflowServer(out / "mlflow"))
    # More logical CPUs than cores: three sampling workers take turns.
    head = stack.enter_context(RayHead(num_cpus=3))
    environment = head.environment() | mlflow.environment()
    return Bench(out=out, head=head, environment=environment, tracking_uri=mlflow.uri, seed=seed)


def table(results: dict[str, Any]) -> str:
    """A Markdown table of what was measured."""
    rows = ["| what | measured |", "| --- | --- |"]
    if "exact" in results:
        told = results["exact"]
        faults = [Fault(**fault) for fault in told["faults"]]
        count = {kind: sum(fault.kind == kind for fault in faults) for kind in ("worker", "driver")}
        rows += [
            f"| SIGKILLs in one run of {told['steps']} steps on 2 workers | {count['worker']} of workers, "
            f"{count['driver']} of drivers; {told['made_again']} steps were begun again |",
            f"| weights, moving average, optimiser at its end, against a run left alone | "
            f"{'the same bits' if told['is_bit_identical'] else 'DIFFERENT'} |",
            f"| images lost, images consumed twice, pixels changed | {told['lost']}, {told['twice']}, "
            f"{told['changed']} of {told['steps'] * BATCH}; "
            f"{'the same pixels as the run left alone' if told['has_same_pixels'] else 'OTHER pixels'} |",
        ]
        for kind in count:
            times = sorted(fault.recovery_seconds for fault in faults if fault.kind == kind)
            if times:
                rows.append(
                    f"| from the SIGKILL of a {kind} to the next training step | p50 {_quantile(times, 0.5):.1f} s, "
                    f"p95 {_quantile(times, 0.95):.1f} s, longest {times[-1]:.1f} s |"
                )
    for name in ("goodput", "goodput_auto"):
        if name in results:
            rows += _goodput_rows(results[name], is_auto=name == "goodput_auto")
    if "sampling" in results:
        told = dict(results["sampling"])
        images = told.pop("images")
        alone = told.pop("alone")
        for row in told.values():
            same = "byte-identical" if row["is_identical"] and row["rows"] == alone["rows"] else "DIFFERENT"
            rows.append(
                f"| {images} images sampled on {row['workers']} workers, {row['kills']} killed | {row['rows']} images, "
                f"{same} to a job left alone |"
            )
    if "workers" in results:
        told = results["workers"]
        same = "the same samples in the same order" if told["has_same_order"] and told["has_same_pixels"] else "OTHER"
        rows.append(
            f"| {told['steps']} steps on {', then '.join(map(str, told['workers']))} workers, against 1 throughout | "
            f"{same}; {told['lost']} lost, {told['twice']} twice |"
        )
    return "\n".join(rows) + "\n"


def _goodput_rows(told: dict[str, Any], *, is_auto: bool) -> list[str]:
    stall, times = told["checkpoint_stall_fraction"], sorted(fault["recovery_seconds"] for fault in told["faults"])
    every = f"{told.get('every_steps', GOODPUT_EVERY):.0f} steps of {told['step_seconds']:.2g} s"
    chosen = f"every-steps auto: at last {every}" if is_auto else f"a checkpoint every {every}"
    kills = f"{len(times)} kills in {told['seconds']:.0f} s"
    recovery = f"p50 {_quantile(times, 0.5):.1f} s, p95 {_quantile(times, 0.95):.1f} s" if times else "no kill"
    return [
        f"| goodput with a worker killed every minute ({kills}, {chosen}) | {told['goodput']:.1%} |",
        f"| from these kills to the next training step | {recovery} |",
        f"| share of the time in which training waits for a checkpoint | "
        f"{'not told' if stall is None else f'{stall:.2%}'} |",
    ]


def _quantile(ordered: list[float], share: float) -> float:
    """The smallest of the sorted values that at least `share` of them do not exceed."""
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


if __name__ == "__main__":
    entry_point(main)
