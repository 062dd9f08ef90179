"""The science of a run, kept beside its checkpoints, so that the same name cannot come to mean something else."""

from __future__ import annotations

import json
from typing import Any

from drl_dist.checkpoints.files import parse_json_object
from drl_dist.config import Experiment, differences, to_dict
from drl_dist.data.filesystem import Folder
from drl_dist.errors import UserError

RECORD = "experiment.json"
# A run may be made longer: no step depends on how many follow.
_MAY_CHANGE = "experiment.train.num_steps"


def check_record(run_url: str, experiment: Experiment, data_fingerprint: str) -> None:
    """Return if a run folder is new, or holds this experiment on this data.

    Raises:
        UserError: it holds another one; the message lists every field that differs.
    """
    try:
        text = Folder(run_url).read(RECORD)
    except FileNotFoundError:
        return
    stored = parse_json_object(text, source=f"record {run_url}/{RECORD}")
    changed = [
        line
        for line in differences(stored, _record(experiment, data_fingerprint))
        if not line.startswith(_MAY_CHANGE + ":")
    ]
    if changed:
        raise UserError(
            f"run {run_url}",
            got="changed fields " + "; ".join(changed).replace("experiment.", ""),
            expected="the experiment that the run was started with",
            remedy="give the changed run a name of its own, or undo the changes",
        )


def write_record(run_url: str, experiment: Experiment, data_fingerprint: str) -> None:
    """Keep the experiment and the fingerprint of its data in the run folder."""
    text = json.dumps(_record(experiment, data_fingerprint), indent=2) + "\n"
    Folder(run_url).write(RECORD, text.encode())


def _record(experiment: Experiment, data_fingerprint: str) -> dict[str, Any]:
    return {"experiment": to_dict(experiment), "data_fingerprint": data_fingerprint}
