"""What a person looks for on a run's page besides its curves: source, commit, user, data set, descriptions."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, RunTag
from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from drl_dist.common.amounts import counted
from drl_dist.common.places import parse_place
from drl_dist.tracking.runs import NOTE_TAG
from drl_dist.tracking.server.client import connect, user_errors

COMMIT_VARIABLE = "GIT_COMMIT"
"""Variable that names the commit where the working directory is no checkout."""
# MLflow's own limit.
_DIGEST_LENGTH = 36
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_\-]{0,199}")
# MLflow reserves latest and v3; best is a sweep's.
_RESERVED = re.compile(r"latest|best|v\d+", re.IGNORECASE)
_EXPERIMENT_NOTE = (
    "Energy-based models trained by diffusion recovery likelihood (drl_dist). A run's description shows its newest "
    "samples. *Model metrics* has loss and gradient at the top, then a section for what each noise level does, one for "
    "pixels and one for speed. *System metrics* is the machine of its first worker. The models that it registered are "
    "under *Models*, the newest version of each run with the run's name as its alias."
)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The images of a run."""

    name: str
    url: str
    fingerprint: str
    """SHA-256, 64 hexadecimal digits."""
    profile: Mapping[str, object]
    """Number of images, resolution and the like."""


def fill_page(uri: str | None, run_id: str, data: DataSet) -> None:
    """Say on a run's page who trains it, with which code, on which data; the newest start counts.

    Raises:
        UserError: the server does not answer.
    """
    client = connect(uri)
    tags = {MLFLOW_USER: _user(), MLFLOW_SOURCE_TYPE: "JOB", MLFLOW_SOURCE_NAME: shlex.join(_command())}
    # The copy of a checkout that Ray sends to a cluster has no history.
    commit = os.environ.get(COMMIT_VARIABLE) or get_git_commit(str(Path.cwd()))
    if commit is not None:
        tags[MLFLOW_GIT_COMMIT] = commit
    with user_errors(client.tracking_uri):
        client.log_batch(run_id, tags=[RunTag(name, text[:8000]) for name, text in tags.items()])
        client.log_inputs(run_id, [_input(data)])
        _describe_experiment(client, client.get_run(run_id).info.experiment_id)


def alias_of(run_name: str) -> str | None:
    """The alias of a run's newest model version; None for a name that MLflow takes for none, or gives a meaning."""
    name = run_name.replace(".", "-")
    return name if _ALIAS.fullmatch(name) and not _RESERVED.fullmatch(name) else None


def version_description(step: int, metadata: Mapping[str, str]) -> str:
    """What a model version is, for its page."""
    seen = metadata.get("images_seen")
    parts = [f"Averaged weights after step {step}" + (f" ({counted(int(seen), 'image')})" if seen else "")]
    if "run_name" in metadata:
        parts.append(f"of run {metadata['run_name']}")
    return " ".join(parts) + (f"; checkpoint {metadata['checkpoint_url']}" if "checkpoint_url" in metadata else "")


def model_description(model_name: str) -> str:
    """What a registered model is, for its page."""
    return (
        f"An energy-based model of {model_name}, trained by diffusion recovery likelihood. Sample it with "
        f"python jobs/sample.py --model models:/{model_name}@latest --out FOLDER"
    )


def _input(data: DataSet) -> DatasetInput:
    source_type = "local" if parse_place(data.url).is_local else parse_place(data.url).scheme
    dataset = Dataset(
        name=data.name,
        digest=data.fingerprint[:_DIGEST_LENGTH],
        source_type=source_type,
        source=json.dumps({"uri": data.url}),
        profile=json.dumps({**data.profile, "fingerprint": data.fingerprint}),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])


def _describe_experiment(client: MlflowClient, experiment_id: str) -> None:
    if NOTE_TAG not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, NOTE_TAG, _EXPERIMENT_NOTE)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user need not have a name.
        return "unknown"


def _command() -> list[str]:
    """The program of this process, without its options: they are the run's parameters."""
    return [Path(sys.argv[0]).name or "python"]
