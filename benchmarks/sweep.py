"""Time a sweep against its trials run one by one: ``python -m benchmarks.sweep --preset digits …``.

Runs ``jobs/sweep.py`` with the same options, and then every trial that made all its steps as a separate training job,
in another folder, on the same cluster. Use ``--rescore-trials 0 --no-early-stopping``: final scores are not part of a
trial.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

from drl_dist.common.program import entry_point
from drl_dist.data.index import open_index
from drl_dist.jobs.sweep.options import parse_sweep
from drl_dist.jobs.sweep.record import SweepFolder
from drl_dist.jobs.sweep.trial import trial_config
from drl_dist.jobs.sweep.winner import train_words


def main(argv: list[str]) -> int:
    """Run and time both; the exit status."""
    plan, _ = parse_sweep(argv)
    folder = SweepFolder(plan, open_index(plan.base.data, check_shards=False).fingerprint)
    if folder.trials():
        print(f"{folder.url} holds trials already: nothing could be timed", file=sys.stderr)
        return 2
    sweep_seconds = _timed([sys.executable, "jobs/sweep.py", *argv])
    alone: dict[int, float] = {}
    tracking = plan.base.tracking
    for trial in folder.trials():
        outcome = folder.outcome(trial.number)
        if outcome is None or outcome.status != "finished":
            print(f"trial {trial.number} did not make all its steps and is left out", flush=True)
            continue
        run = dataclasses.replace(trial_config(folder, trial), storage=f"{plan.base.storage}/one-by-one")
        words = train_words(run, plan.preset, plan.setting, folder.run_name(trial.number) + "-alone")
        words += ["--train.num-steps", str(run.experiment.train.num_steps)]
        words += ["--optim.first-objective-steps", str(run.experiment.optim.first_objective_steps)]
        words += ["--checkpoint.every-steps", str(run.checkpoint.every_steps)]
        words += ["--tracking.score-every-steps", str(tracking.score_every_steps)]
        words += ["--tracking.score-features", tracking.score_features]
        words += ["--tracking.score-num-images", str(tracking.score_num_images)]
        alone[trial.number] = _timed([sys.executable, *words[1:]])
    for number, seconds in alone.items():
        print(f"trial {number} alone: {seconds:.1f} s")
    print(f"{len(alone)} trials one by one: {sum(alone.values()):.1f} s; the sweep of all: {sweep_seconds:.1f} s")
    return 0


def _timed(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - began


if __name__ == "__main__":
    entry_point(lambda: main(sys.argv[1:]))
