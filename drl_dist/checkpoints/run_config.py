"""How a run was started, beside its record: its data, its registered model and its machines, to start it again with."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from drl_dist.checkpoints.configs import config_from_dict
from drl_dist.checkpoints.format import parse_json_object
from drl_dist.checkpoints.run_record import RECORD, RUN_CONFIG
from drl_dist.common.errors import UserError
from drl_dist.common.nested import completed, to_dict
from drl_dist.config.tree import Experiment, RunConfig
from drl_dist.data.filesystem import Folder, check_reachable


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as its folder has it."""

    run: RunConfig
    """Its `data` is empty where only the record of an earlier version is there."""
    without_ray: bool
    """Whether it was started without Ray last."""


def write_run_config(run: RunConfig, *, without_ray: bool) -> None:
    """Keep everything but the experiment, which `drl_dist.checkpoints.run_record.write_record` keeps."""
    fields = {name: value for name, value in to_dict(run).items() if name != "experiment"}
    record = {"run": fields, "without_ray": without_ray}
    Folder(run.url).write(RUN_CONFIG, (json.dumps(record, indent=2) + "\n").encode())


def stored_run(url: str) -> StoredRun:
    """The run in a folder, under the name and in the storage that the folder now has.

    Args:
        url: folder of the run.

    Raises:
        UserError: the storage does not answer, there is no run, or one of its two records is damaged.
    """
    check_reachable(url)
    folder = Folder(url)
    storage, _, name = url.rstrip("/").rpartition("/")
    try:
        text = folder.read(RECORD)
    except FileNotFoundError:
        is_checkpoint = name.startswith("checkpoint_")
        raise UserError(
            f"run {url}",
            got="a checkpoint" if is_checkpoint else f"no {RECORD}",
            expected="the folder of a run, STORAGE/RUN_NAME",
            remedy="leave out the checkpoint's name" if is_checkpoint else "correct the URL",
        ) from None
    record = parse_json_object(text, source=f"record {url}/{RECORD}")
    whole = completed(record, {"experiment": to_dict(Experiment(preset=""))})
    experiment = config_from_dict(Experiment, whole["experiment"], source=f"record {url}/{RECORD}")
    run, without_ray = RunConfig(experiment=experiment), False
    try:
        text = folder.read(RUN_CONFIG)
    except FileNotFoundError:
        pass
    else:
        source = f"record {url}/{RUN_CONFIG}"
        record_of_run = parse_json_object(text, source=source)
        fields, without_ray = record_of_run.get("run"), record_of_run.get("without_ray")
        if not isinstance(fields, dict) or not isinstance(without_ray, bool):
            raise UserError(
                source,
                got="an object without run and without_ray",
                expected="the record that training wrote",
                remedy="restore the file from a copy, or remove it and give --data",
            )
        values = fields | {"experiment": to_dict(experiment)}
        run = config_from_dict(RunConfig, values, source=source)
    start_from = record.get("start_from")
    run = dataclasses.replace(run, storage=storage, run_name=name, start_from=start_from)
    return StoredRun(run=run, without_ray=without_ray)
