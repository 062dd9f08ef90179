"""The sweep job: check everything, run the trials with Ray Tune, rescore the best ones, report the result."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.places import joined
from drl_dist.data.decode import read_images
from drl_dist.data.index import ShardIndex
from drl_dist.data.labels import labelled_by
from drl_dist.data.pixels.scales import scaled_to
from drl_dist.data.subset import check_count
from drl_dist.jobs.common.cluster import capacity, check_capacity, cluster
from drl_dist.jobs.common.prometheus import job_exported
from drl_dist.jobs.sweep.options import SweepPlan
from drl_dist.jobs.sweep.proposals import make_proposer
from drl_dist.jobs.sweep.record import Outcome, SweepFolder, continued
from drl_dist.jobs.sweep.rescore import kept_rescores, rescore_trial
from drl_dist.jobs.sweep.result import RESULTS, finish_sweep, sweep_rows, tell_outcome
from drl_dist.jobs.sweep.search import SweepNews, SweepSearch, make_scheduler, replay
from drl_dist.jobs.sweep.space import apply
from drl_dist.jobs.sweep.table import Row, ranked
from drl_dist.jobs.sweep.trial import plain_fields, run_trial
from drl_dist.jobs.train.driver import prepare_run
from drl_dist.jobs.train.start_up import told_until
from drl_dist.jobs.train.stop import KeyInStore
from drl_dist.tracking.runs import status_kept
from drl_dist.tracking.server.address import access, take_access
from drl_dist.tracking.server.client import connect
from drl_dist.tracking.sweeps import open_sweep
from drl_dist.training.watch import DivergenceLimits, saturated_share

TRIAL_BYTES = 256 * 2**20
"""Memory that a trial's own process reserves. It computes nothing: a CPU for it would be one that its workers lack, and
on a machine with just enough they would wait for ever."""
MAX_FAILURES = 2
"""Restarts of a trial whose process or workers died beyond Ray Train's own restarts."""
RESCORE_IMAGES = 4096
_REAL_IMAGES = 256
_SATURATED_MARGIN = 0.9
TUNE_ENVIRONMENT = {
    # What trials report is kept by the sweep itself.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the driver as it ends every other job.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The new output says where Ray Tune keeps its notes, whatever the verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
}


def sweep_run(plan: SweepPlan) -> int:
    """Run a sweep, or what an earlier start has left of it; the exit status.

    Args:
        plan: checked; see `drl_dist.jobs.sweep.options.plan_sweep`.

    Returns:
        0 if every trial has ended, one of them has made all its steps, and MLflow knows the winner; else 1.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    name, plan = plan.options.sweep_name, continued(plan)
    # Everything a trial would check, once, before anything starts; no trial has this name.
    index = prepare_run(dataclasses.replace(plan.base, run_name=name, storage=_url(plan))).index
    plan = scaled_plan(plan, index)
    num_images = _rescore_images(plan, index)
    folder = SweepFolder(plan, index.fingerprint)
    folder.check(RESULTS)
    trials = folder.trials()
    # A space that changed its meaning since would otherwise be found by every trial by itself.
    for trial in trials:
        apply(trial.values, plan.base)
    uri = connect(plan.base.tracking.uri).tracking_uri
    plan = dataclasses.replace(
        plan, base=dataclasses.replace(plan.base, tracking=dataclasses.replace(plan.base.tracking, uri=uri))
    )
    folder = SweepFolder(plan, index.fingerprint)
    tracking = plan.base.tracking
    with cluster(prestart=False, state_api=True):
        check_capacity(plan.base.num_workers, cpus=plan.base.cpus_per_worker, gpus=int(plan.base.use_gpu))
        folder.begin()
        params = {f"base.{field}": value for field, value in plain_fields(plan.base).items()}
        params |= {f"space.{field}": value for field, value in plan.space.as_json().items()}
        params |= {f"sweep.{field}": value for field, value in dataclasses.asdict(plan.options).items()}
        sweep_id = open_sweep(uri, tracking.experiment, name, params)
        with job_exported(name), status_kept(uri, sweep_id):
            _run_trials(folder, partial(run_trial, folder=folder, sweep_run=sweep_id, limits=_limits(plan, index)))
            _rescore(folder, index, num_images, sweep_rows(folder, num_images))
            return finish_sweep(folder, sweep_id, num_images)


def scaled_plan(plan: SweepPlan, index: ShardIndex) -> SweepPlan:
    """The plan with numbers in the fields that its base leaves to the data, as its record and its trials have them.

    Raises:
        UserError: from `scaled_to`, or the numbers do not go with some value of the space.
    """
    experiment = labelled_by(plan.base.experiment, index)
    experiment = scaled_to(experiment, lambda: index.statistics, plan.base.data)
    plan = dataclasses.replace(plan, base=dataclasses.replace(plan.base, experiment=experiment))
    for values in plan.space.corners():
        apply(values, plan.base)
    return plan


def concurrency(plan: SweepPlan) -> int:
    """Trials at a time: as many as the cluster has room for, and no more than the options say."""
    base = plan.base
    needs = {"CPU": base.num_workers * base.cpus_per_worker, "GPU": base.num_workers * int(base.use_gpu)}
    room = min(capacity(resource) // need for resource, need in needs.items() if need)
    return max(1, min(room, plan.options.max_concurrent or room))


def _run_trials(folder: SweepFolder, run: Callable[[dict[str, Any]], None]) -> None:
    """Run by Ray Tune what has not ended."""
    plan, trials = folder.plan, folder.trials()
    proposer = make_proposer(plan.options.search, plan.space, plan.options.search_seed)
    scheduler = make_scheduler(plan)
    unfinished: list[int] = []
    for trial in trials:
        proposer.adopt(trial.number, trial.values)
        outcome = folder.outcome(trial.number)
        if outcome is None:
            unfinished.append(trial.number)
        else:
            proposer.tell(trial.number, outcome.score)
            replay(scheduler, trial.number, folder.curve(trial.number).points, outcome)
    left = len(unfinished) + plan.num_trials - len(trials)
    ended = len(trials) - len(unfinished)
    if not left:
        print(f"sweep {plan.options.sweep_name}: all of {counted(plan.num_trials, 'trial')} ended", flush=True)
        return
    at_once = min(concurrency(plan), left)
    print(
        f"sweep {plan.options.sweep_name}: {ended} of {counted(plan.num_trials, 'trial')} ended, "
        f"{len(unfinished)} to continue, {left - len(unfinished)} to start, {at_once} at a time on "
        f"{counted(plan.base.num_workers, 'worker')} each; everything is kept in {folder.url}",
        flush=True,
    )

    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # It would say that no trial has left Ray Tune a file of results.
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)

    arrival = KeyInStore("trial")

    def trainable(config: dict[str, Any], access: dict[str, str]) -> None:
        arrival.write()
        take_access(access)
        run(config)

    # Ray Tune's own notes: pickles, which nothing reads, so they go when the sweep does.
    with (
        tempfile.TemporaryDirectory(prefix="drl-tune-") as temporary,
        told_until(arrival, f"sweep {plan.options.sweep_name}", "the first trial's process is to start"),
    ):
        tune.Tuner(
            tune.with_resources(
                # As a parameter it stays in memory, and is in none of the pickles.
                tune.with_parameters(trainable, access=access()),
                PlacementGroupFactory([{"memory": TRIAL_BYTES}]),
            ),
            tune_config=tune.TuneConfig(
                # Searcher and scheduler know what the score is called; given here, Ray Tune would refuse theirs.
                search_alg=SweepSearch(folder, proposer, unfinished, len(trials)),
                scheduler=scheduler,
                num_samples=left,
                max_concurrent_trials=at_once,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(Path(temporary).resolve()),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[SweepNews(folder, partial(tell_now_or_later, folder))],
                verbose=0,
            ),
        ).fit()


def tell_now_or_later(folder: SweepFolder, number: int, outcome: Outcome) -> None:
    """Mark on the MLflow page how a trial ended; what fails now is logged again at the sweep's end."""
    try:
        tell_outcome(folder, number, outcome)
    except UserError as error:
        print(f"trial {number}: how it ended is not on the MLflow page yet: {error}", file=sys.stderr, flush=True)


def _rescore(folder: SweepFolder, index: ShardIndex, num_images: int, rows: list[Row]) -> None:
    """Score the best finished trials again, by their last scores."""
    options = folder.plan.options
    finished = [dataclasses.replace(row, rescores=()) for row in rows if row.status == "finished"]
    for row in ranked(finished)[: options.rescore_trials]:
        kept = {one.seed for one in kept_rescores(folder, row.trial.number, num_images)}
        missing = [seed for seed in options.rescore_seeds if seed not in kept]
        if missing:
            print(
                f"scoring trial {row.trial.number} again with {counted(num_images, 'image')} of each of "
                f"{counted(len(missing), 'seed')}",
                flush=True,
            )
            rescore_trial(folder, row.trial, index, num_images, missing)


def _limits(plan: SweepPlan, index: ShardIndex) -> DivergenceLimits:
    saturated = plan.options.max_saturated
    if saturated is None:
        real = saturated_share(read_images(index, min(_REAL_IMAGES, index.num_samples)))
        saturated = real + _SATURATED_MARGIN * (1 - real)
    return DivergenceLimits(
        max_gap_growth=plan.options.max_gap_growth,
        max_displacement=plan.options.max_displacement,
        max_saturated=saturated,
        grace_images=plan.grace_images,
    )


def _rescore_images(plan: SweepPlan, index: ShardIndex) -> int:
    wanted = plan.options.rescore_images or min(RESCORE_IMAGES, index.num_samples)
    if plan.options.rescore_trials:
        check_count(index, wanted, what="data", option="--rescore-images")
    return wanted


def _url(plan: SweepPlan) -> str:
    return joined(plan.base.storage, plan.options.sweep_name)


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config['number']:04d}-{trial.trial_id}"
