"""The result of a sweep: table, plots, the alias of the winner, and the command that trains it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from drl_dist.checkpoints.storage import newest_checkpoint
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder
from drl_dist.jobs.sweep.plots import PLOTS, make_plots
from drl_dist.jobs.sweep.record import BAD_SCORE, OUTCOME, Outcome, SweepFolder, read
from drl_dist.jobs.sweep.rescore import kept_rescores
from drl_dist.jobs.sweep.table import Row, as_csv, as_parquet, as_text, best, make_table
from drl_dist.jobs.sweep.trial import trial_config
from drl_dist.jobs.sweep.winner import submitted, train_words, values_text
from drl_dist.tracking.sweeps import BEST, end_trial, log_files, mark_best, trial_run

TABLE_CSV, TABLE_PARQUET = "table.csv", "table.parquet"
RESULTS = (TABLE_CSV, TABLE_PARQUET, *PLOTS)
"""All files of the result."""


def sweep_rows(folder: SweepFolder, num_images: int) -> list[Row]:
    """Every trial there is, with what is known of it.

    Args:
        num_images: of the final scores that count.
    """
    run_ids = _run_ids(folder)
    rows: list[Row] = []
    for trial in folder.trials():
        url = folder.trial_url(trial.number)
        rows.append(
            Row(
                trial=trial,
                run_name=folder.run_name(trial.number),
                run_url=url,
                run_id=run_ids.get(trial.number, ""),
                curve=folder.curve(trial.number),
                outcome=read(url, OUTCOME, Outcome),
                rescores=kept_rescores(folder, trial.number, num_images),
            )
        )
    return rows


def _run_ids(folder: SweepFolder) -> dict[int, str]:
    """Ids of the trials' tracked runs by the trials' numbers; none where the server is away."""
    tracking = folder.plan.base.tracking
    found: dict[int, str] = {}
    for trial in folder.trials():
        try:
            run_id = trial_run(tracking.uri, tracking.experiment, folder.run_name(trial.number))
        except UserError as error:
            print(f"the table lacks ids of tracked runs: {error}", file=sys.stderr, flush=True)
            break
        found |= {} if run_id is None else {trial.number: run_id}
    return found


def tell_outcome(folder: SweepFolder, number: int, outcome: Outcome) -> None:
    """Mark on the MLflow page how a trial ended.

    Raises:
        UserError: the server does not answer.
    """
    tracking = folder.plan.base.tracking
    score = outcome.score if outcome.score < BAD_SCORE else None
    end_trial(tracking.uri, tracking.experiment, folder.run_name(number), outcome.status, outcome.reason, score)


def finish_sweep(folder: SweepFolder, sweep_id: str, num_images: int) -> int:
    """Write and show the result; the exit status: 0 if every trial has ended, there is a winner and MLflow knows it,
    else 1.

    Args:
        sweep_id: of the sweep's tracked run.
        num_images: of the final scores.
    """
    plan, rows = folder.plan, sweep_rows(folder, num_images)
    table = make_table(rows)
    caption = (
        f"sweep {plan.options.sweep_name} of {plan.preset}, {counted(len(rows), 'trial')} at up to "
        f"{counted(plan.base.experiment.train.num_steps, 'step')}, seed {plan.base.experiment.train.seed}"
    )
    plots = make_plots(rows, plan.space, caption)
    files = {TABLE_CSV: as_csv(table), TABLE_PARQUET: as_parquet(table), **plots}
    for name, data in files.items():
        Folder(folder.url).write(name, data)
    winner = best(rows)
    texts: dict[str, str] = {}
    print("\n" + as_text(table) + f"\n\ntable and plots: {folder.url}", flush=True)
    if winner is not None:
        run = dataclasses.replace(trial_config(folder, winner.trial), storage=plan.base.storage)
        command = submitted(
            train_words(run, plan.preset, plan.setting, f"{plan.options.sweep_name}-{winner.trial.number:04d}-full")
        )
        texts = {"sweep.best_trial": str(winner.trial.number), "sweep.best_command": command}
        print(
            f"best: trial {winner.trial.number}, {values_text(winner.trial.values)}\n"
            f"to train it at full length:\n{command}",
            flush=True,
        )
    is_logged = True
    try:
        _log(folder, sweep_id, rows, winner, files, texts)
    except UserError as error:
        is_logged = False
        print(
            f"warning: the result is not logged to MLflow: {error} The same command logs it later.",
            file=sys.stderr,
            flush=True,
        )
    failed = [row for row in rows if row.status in ("failed", "unfinished")]
    if failed:
        numbers = ", ".join(str(row.trial.number) for row in failed)
        print(f"trials {numbers} have not ended; the same command tries them again", flush=True)
    elif winner is None:
        print("no trial has made all its steps: try another space or gentler early stopping", flush=True)
    return 0 if winner is not None and not failed and is_logged else 1


def _log(
    folder: SweepFolder,
    sweep_id: str,
    rows: Sequence[Row],
    winner: Row | None,
    files: Mapping[str, bytes],
    texts: Mapping[str, str],
) -> None:
    """Tell MLflow how every trial ended, which is the best, and the table.

    Raises:
        UserError: the server does not answer.
    """
    plan = folder.plan
    tracking = plan.base.tracking
    for row in rows:
        if row.outcome is not None:
            tell_outcome(folder, row.trial.number, row.outcome)
    if winner is not None:
        newest = newest_checkpoint(winner.run_url)
        assert newest is not None, "a trial that has made all its steps has written its last checkpoint"
        run_id = winner.run_id or trial_run(tracking.uri, tracking.experiment, winner.run_name) or ""
        version = mark_best(tracking.uri, plan.model_name, run_id, newest, winner.run_name)
        print(f"the best model is models:/{plan.model_name}@{BEST} (version {version})", flush=True)
    log_files(tracking.uri, sweep_id, files, texts)
