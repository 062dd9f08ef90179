"""The MLflow run of a job over a registered model: made once per request, tied to the model version, logged again at
will. mlflow itself, which takes seconds to import, is not imported before something is logged."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten
from drl_dist.tracking.server.address import address_option

Kind = Literal["samples", "scores", "likelihood", "ood", "classification"]
PICTURE_NAME = "samples.png"
"""A file of this name becomes the description of its run."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A model version that the server knows."""

    name: str
    version: int
    step: int
    run_id: str
    """MLflow run that trained it."""


@dataclass(frozen=True, kw_only=True)
class JobRun:
    """What a job logs.

    Args:
        kind: of the job; the run's tag ``kind``, and the first part of its name and of the version's tags.
        version: the model version that the job is over.
        name: of the run, from `job_run_name`.
        params: number of images, seed and the like; nested dictionaries are flattened.
        tags: further tags of the run.
        metrics: name, value, step.
        files: artifacts by name.
        description: of the run, the text at the top of its page.
        version_tags: tags of the model version by the names that follow ``KIND.NAME.``; the last one is written last.
    """

    kind: Kind
    version: RegisteredVersion
    name: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    metrics: Sequence[tuple[str, float, int]] = ()
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    version_tags: Mapping[str, str]
    description: str | None = None


def job_run_name(kind: Kind, model_name: str, identity: str) -> str:
    """The name of the one run of a request, whatever the number of starts; `identity` is all that distinguishes it."""
    return f"{kind}-{model_name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def log_job_run(uri: str | None, run: JobRun) -> str:
    """Log a job as a run of the experiment that its model was trained in; the run's id.

    The model version gets the tags ``KIND.NAME``, the run's id, and ``KIND.NAME.X`` for each of `version_tags`. The
    same job logged again, or killed while it logged and run again, writes to the same run; results that were computed
    again and differ take the place of the earlier ones.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        run: what is logged.

    Raises:
        UserError: the server does not answer, or does not take this.
    """
    from drl_dist.tracking.runs import NOTE_TAG, describe_by_picture, finish_run, log_results, open_run
    from drl_dist.tracking.server.client import connect, user_errors

    version = run.version
    client = connect(uri)
    with user_errors(client.tracking_uri):
        trained_by = client.get_run(version.run_id)
        experiment = client.get_experiment(trained_by.info.experiment_id)
    own = {"kind": run.kind, "model": f"models:/{version.name}/{version.version}", "trained_by": version.run_id}
    if run.description is not None:
        own[NOTE_TAG] = run.description
    run_id = open_run(uri, experiment.name, run.name, flatten(dict(run.params)), own | dict(run.tags))
    log_results(client, run_id, run.metrics)
    with user_errors(client.tracking_uri), tempfile.TemporaryDirectory(prefix=f"drl-{run.kind}-") as folder:
        for name, data in run.files.items():
            (Path(folder) / name).write_bytes(data)
            client.log_artifact(run_id, str(Path(folder) / name))
        tag = f"{run.kind}.{run.name}"
        for name, text in {tag: run_id, **{f"{tag}.{name}": text for name, text in run.version_tags.items()}}.items():
            client.set_model_version_tag(version.name, str(version.version), name, text)
    if PICTURE_NAME in run.files:
        describe_by_picture(uri, run_id)
    finish_run(uri, run_id, "FINISHED")
    return run_id


def log_or_warn(uri: str | None, run: JobRun, *, what: str, later: str) -> str | None:
    """As `log_job_run`, but a server that went away keeps the results from nobody: None, after a warning on stderr.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        run: what is logged.
        what: the results, e.g. ``the images are``.
        later: how they are logged later, a sentence.
    """
    try:
        run_id = log_job_run(uri, run)
    except UserError as error:
        warn_unlogged(error, what=what, later=later)
        return None
    version = run.version
    print(f"logged to MLflow as run {run_id}, linked to version {version.version} of {version.name}", flush=True)
    return run_id


def warn_unlogged(error: UserError, *, what: str, later: str) -> None:
    """Say on stderr why something is not logged; arguments as for `log_or_warn`."""
    print(f"warning: {what} not logged to MLflow: {error} {later}", file=sys.stderr, flush=True)


def is_logged(uri: str | None, version: RegisteredVersion, tag: str) -> bool:
    """Whether a model version has a tag ``KIND.NAME.X``, the last of which says that all of a job was logged.

    Raises:
        UserError: the server does not answer, or has no such version.
    """
    from drl_dist.tracking.server.client import connect, user_errors

    client = connect(uri)
    with user_errors(client.tracking_uri):
        return tag in client.get_model_version(version.name, str(version.version)).tags


def find_version(uri: str | None, name: str, version: int, ema_sha256: str | None) -> RegisteredVersion:
    """A registered model version, of which nothing is downloaded.

    Args:
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        name: of the model.
        version: its number.
        ema_sha256: of the weights that made the images at hand, None if that is not known.

    Raises:
        UserError: the server does not answer, has no such version, or has another model by that name.
    """
    from drl_dist.tracking.server.client import connect, user_errors

    client = connect(uri)
    with user_errors(client.tracking_uri):
        found = client.get_model_version(name, str(version))
    if found.run_id is None or "step" not in found.tags:
        raise UserError(
            f"model models:/{name}/{version}",
            got="a version that was not made by training",
            expected="a registered checkpoint",
            remedy="score samples of another version, or leave the tracking server out",
        )
    # Two servers count their versions each for itself.
    if ema_sha256 is not None and found.tags.get("ema_sha256", ema_sha256) != ema_sha256:
        raise UserError(
            f"model models:/{name}/{version}",
            got=f"other weights at {client.tracking_uri}",
            expected="the weights that made the samples",
            remedy=f"give the server that knows them as {address_option()}",
        )
    return RegisteredVersion(name, version, int(found.tags["step"]), found.run_id)
