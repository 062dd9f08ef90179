"""The record of a run's scientific settings beside its checkpoints, so that a name keeps its meaning."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from typing import Any

from drl_dist.checkpoints.earlier_records import as_begun, lacking, without
from drl_dist.checkpoints.format import Checkpoint, parse_json_object
from drl_dist.checkpoints.retention import SNAPSHOT
from drl_dist.checkpoints.rollbacks import ROLLBACKS
from drl_dist.checkpoints.run_status import STATUS
from drl_dist.checkpoints.step_costs import STEP_COSTS
from drl_dist.common.errors import UserError
from drl_dist.common.nested import completed, differences, to_dict
from drl_dist.config.presets import FIRST_STEPS
from drl_dist.config.tree import Experiment, RunConfig
from drl_dist.data.filesystem import Folder
from drl_dist.data.substitutes import SUBSTITUTES

RECORD = "experiment.json"
RUN_CONFIG = "run.json"
"""How the run was started last; see `drl_dist.checkpoints.run_config`."""
# What a run writes over, or removes where it is of no use to Ray Train.
_WRITTEN = {SUBSTITUTES, ROLLBACKS, SNAPSHOT, RUN_CONFIG, STATUS, STEP_COSTS}
# A run may be made longer. No step depends on how many follow, but for the learning rate along a cosine, which goes on
# as that of the longer run.
_MAY_CHANGE = "experiment.train.num_steps"


def continued(run: RunConfig, chosen: Collection[str] = ()) -> RunConfig:
    """The run as its folder has it, if an earlier version began it (see `drl_dist.checkpoints.earlier_records`), or
    where another number of steps would move the end of its first objective.

    Args:
        chosen: fields, by their dotted names, that are to be as they are.

    Raises:
        UserError: its record is damaged.
    """
    names = [name for name in lacking(run.url, RECORD) if name not in chosen]
    experiment = as_begun(run.experiment, names, f"run {run.run_name}")
    first = None if FIRST_STEPS in chosen else first_steps_begun(run.url)
    if first is not None and first != experiment.optim.first_objective_steps:
        print(f"run {run.run_name} goes on with its own {FIRST_STEPS}, {first}", flush=True)
        experiment = dataclasses.replace(
            experiment, optim=dataclasses.replace(experiment.optim, first_objective_steps=first)
        )
    return dataclasses.replace(run, experiment=experiment)


def first_steps_begun(run_url: str) -> int | None:
    """Steps of a run's first objective, as its record has them; None without a record, or without such an objective.

    Raises:
        UserError: the record is damaged.
    """
    try:
        text = Folder(run_url).read(RECORD)
    except FileNotFoundError:
        return None
    optim = parse_json_object(text, source=f"record {run_url}/{RECORD}").get("experiment", {}).get("optim", {})
    return optim.get("first_objective_steps") or None


def has_record(run_url: str) -> bool:
    """Whether a run was begun in a folder.

    Raises:
        UserError: the storage does not answer.
    """
    return Folder(run_url).size(RECORD) is not None


def check_record(run_url: str, experiment: Experiment, data_fingerprint: str, start_from: str | None = None) -> None:
    """Return if a run folder is new, or holds this experiment on this data.

    Args:
        start_from: checkpoint of another run that this one continues from.

    Raises:
        UserError: it holds another one; the message lists every field that differs. Or it holds files of the names
            that a run writes, and no record that says what they are.
    """
    try:
        text = Folder(run_url).read(RECORD)
    except FileNotFoundError:
        if found := sorted(_WRITTEN & Folder(run_url).sizes().keys()):
            raise UserError(
                f"run {run_url}",
                got=f"{', '.join(found)} of something else, without {RECORD}",
                expected="a new folder, or one of this run",
                remedy="give the run another name, or another --storage",
            ) from None
        return
    stored = parse_json_object(text, source=f"record {run_url}/{RECORD}")
    stored = completed(stored, {"experiment": to_dict(Experiment(preset=""))})
    changed = [
        line
        for line in differences(stored, _record(experiment, data_fingerprint, start_from))
        if not line.startswith(_MAY_CHANGE + ":")
    ]
    if changed:
        raise UserError(
            f"run {run_url}",
            got="changed fields " + "; ".join(changed).replace("experiment.", ""),
            expected="the experiment that the run was started with",
            remedy="undo the changes, or give the changed run a name of its own, with --start-from to continue "
            "from here",
        )


def check_checkpoint(checkpoint: Checkpoint, url: str, run: RunConfig, data_fingerprint: str) -> None:
    """Refuse a checkpoint of another run, but for the one that this run starts from, which was looked at before.

    Raises:
        UserError: its experiment or its data are others; more steps are allowed.
    """
    changed = [
        line
        for line in differences(to_dict(checkpoint.experiment), to_dict(run.experiment))
        if url != run.start_from and not line.startswith("train.num_steps:")
    ]
    if changed or checkpoint.state.data_fingerprint != data_fingerprint:
        raise UserError(
            f"checkpoint {url}",
            got="; ".join(changed) or "a checkpoint of a run on other data",
            expected="a checkpoint of this run",
            remedy="give the run a name of its own",
        )


def write_record(run_url: str, experiment: Experiment, data_fingerprint: str, start_from: str | None = None) -> None:
    """Keep the experiment, the fingerprint of its data, and what it continues from in the run folder."""
    record = _record(experiment, data_fingerprint, start_from)
    record["experiment"] = without(record["experiment"], lacking(run_url, RECORD))
    Folder(run_url).write(RECORD, (json.dumps(record, indent=2) + "\n").encode())


def _record(experiment: Experiment, data_fingerprint: str, start_from: str | None) -> dict[str, Any]:
    record: dict[str, Any] = {"experiment": to_dict(experiment), "data_fingerprint": data_fingerprint}
    return record | ({} if start_from is None else {"start_from": start_from})
