"""What a sweep leaves: the table, the plots, the alias of the winner, and the command that trains it."""

from __future__ import annotations

import dataclasses

from drl_dist.checkpoints.remote import newest_checkpoint
from drl_dist.data.filesystem import Folder
from drl_dist.on_ray.sweep_rescore import kept_rescores
from drl_dist.on_ray.sweep_trial import trial_config
from drl_dist.sweeps.plots import PLOTS, make_plots
from drl_dist.sweeps.record import OUTCOME, Outcome, SweepFolder, read
from drl_dist.sweeps.table import Row, as_csv, as_parquet, as_text, best, make_table
from drl_dist.sweeps.winner import submitted, train_words, values_text
from drl_dist.tracking.sweeps import BEST, log_files, mark_best, trial_run

TABLE_CSV, TABLE_PARQUET = "table.csv", "table.parquet"
RESULTS = (TABLE_CSV, TABLE_PARQUET, *PLOTS)
"""All files of the result."""


def sweep_rows(folder: SweepFolder, num_images: int) -> list[Row]:
    """Every trial there is, with what is known of it.

    Args:
        num_images: of the final scores that count.
    """
    tracking = folder.plan.base.tracking
    rows: list[Row] = []
    for trial in folder.trials():
        url = folder.trial_url(trial.number)
        rows.append(
            Row(
                trial=trial,
                run_name=folder.run_name(trial.number),
                run_url=url,
                run_id=trial_run(tracking.uri, tracking.experiment, folder.run_name(trial.number)) or "",
                curve=folder.curve(trial.number),
                outcome=read(url, OUTCOME, Outcome),
                rescores=kept_rescores(folder, trial.number, num_images),
            )
        )
    return rows


def finish_sweep(folder: SweepFolder, sweep_id: str, num_images: int) -> int:
    """Write and show the result; the exit status: 0 if every trial has ended and there is a winner, else 1.

    Args:
        sweep_id: of the sweep's tracked run.
        num_images: of the final scores.
    """
    plan, rows = folder.plan, sweep_rows(folder, num_images)
    uri = plan.base.tracking.uri
    table = make_table(rows)
    files = {TABLE_CSV: as_csv(table), TABLE_PARQUET: as_parquet(table), **make_plots(rows, plan.space)}
    for name, data in files.items():
        Folder(folder.url).write(name, data)
    winner = best(rows)
    texts: dict[str, str] = {}
    print("\n" + as_text(table) + f"\n\ntable and plots: {folder.url}", flush=True)
    if winner is not None:
        newest = newest_checkpoint(winner.run_url)
        assert newest is not None, "a trial that has made all its steps has written its last checkpoint"
        version = mark_best(uri, plan.model_name, winner.run_id, newest, winner.run_name)
        run = dataclasses.replace(trial_config(folder, winner.trial), storage=plan.base.storage)
        command = submitted(
            train_words(run, plan.preset, plan.setting, f"{plan.options.sweep_name}-{winner.trial.number:04d}-full")
        )
        texts = {"sweep.best_trial": str(winner.trial.number), "sweep.best_command": command}
        print(
            f"best: trial {winner.trial.number}, {values_text(winner.trial.values)}; its model is "
            f"models:/{plan.model_name}@{BEST} (version {version})\nto train it at full length:\n{command}",
            flush=True,
        )
    log_files(uri, sweep_id, files, texts)
    failed = [row for row in rows if row.status in ("failed", "unfinished")]
    if failed:
        numbers = ", ".join(str(row.trial.number) for row in failed)
        print(f"trials {numbers} have not ended; the same command tries them again", flush=True)
    elif winner is None:
        print("no trial has made all its steps: try another space or gentler early stopping", flush=True)
    return 0 if winner is not None and not failed else 1
