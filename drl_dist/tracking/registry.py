"""Checkpoints as versions of a registered model, and back to a local folder."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from drl_dist.checkpoints.format import CHECKSUMS, MODEL_FILES, part_file, read_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.tracking.job_runs import RegisteredVersion
from drl_dist.tracking.page import alias_of, model_description, version_description
from drl_dist.tracking.server.client import connect, every, is_duplicate, is_missing, user_errors

EMA = part_file("ema")

_PAGE = 10
"""Versions of an answer: behind those that were made by hand, if any, is the one that is looked for."""
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w\-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class ResolvedModel(RegisteredVersion):
    """A model version on this machine."""

    folder: Path
    """Checkpoint folder with the EMA, config, state and checksums; `read_checkpoint` reads it."""


def artifact_path(step: int) -> str:
    """Where a run keeps the registered files of a step."""
    return f"checkpoints/step_{step:08d}"


def register_checkpoint(
    client: MlflowClient, model_name: str, run_id: str, step: int, folder: Path, metadata: Mapping[str, str]
) -> int | None:
    """Make a checkpoint a version of the registered model; a step of a run that is one already stays as it is.

    ``models:/NAME@latest`` is MLflow's built-in name of the highest version (no alias of that name can be set), so a
    step that comes late, after a later step of the same run, is not registered: latest never goes back.

    Args:
        client: from `connect`.
        model_name: the preset.
        run_id: the run that trained it.
        step: training steps done.
        folder: local checkpoint folder; `MODEL_FILES` are uploaded as the run's artifacts.
        metadata: further tags of the version, e.g. images_seen, checkpoint_url, run_name.

    Returns:
        the version, or None if it came late.
    """
    # The newest one has the most steps. A run may have thousands, so the others are not read.
    newest = _version(client, model_name, run_id)
    if newest is not None and int(newest.tags["step"]) >= step:
        found = _version(client, model_name, run_id, step)
        return None if found is None else int(found.version)
    checksums = json.loads((folder / CHECKSUMS).read_text())
    path = artifact_path(step)
    for name in MODEL_FILES:
        client.log_artifact(run_id, str(folder / name), path)
    try:
        client.create_registered_model(model_name, description=model_description(model_name))
    except MlflowException as error:
        if not is_duplicate(error):
            raise
    tags = {**metadata, "step": str(step), "ema_sha256": checksums[EMA]["sha256"]}
    # The files are there before the version is: a version that is found can be used.
    made = client.create_model_version(
        model_name,
        f"runs:/{run_id}/{path}",
        run_id,
        tags=tags,
        description=version_description(step, metadata),
        await_creation_for=0,
    )
    if (alias := alias_of(metadata.get("run_name", ""))) is not None:
        client.set_registered_model_alias(model_name, alias, str(made.version))
    return int(made.version)


def resolve_model(reference: str, uri: str | None = None, into: Path | None = None) -> ResolvedModel:
    """Bring a model version to this machine and verify its checksums.

    Args:
        reference: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; the alias ``latest`` is the newest version.
        uri: the server, by default that of MLFLOW_TRACKING_URI.
        into: keeps one folder per version, which further calls use again; by default a new temporary folder, which the
            caller removes.

    Raises:
        UserError: the server does not answer, there is no such model, or its files do not agree with their checksums.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UserError(
            "model",
            got=reference,
            expected="models:/NAME@ALIAS or models:/NAME/VERSION",
            remedy="correct the model's address",
        )
    client = connect(uri)
    with user_errors(client.tracking_uri):
        version = _find(client, reference, match["name"], match["alias"], match["version"])
        base = into or Path(tempfile.mkdtemp(prefix="drl-model-"))
        folder = base / f"{version.name}-{version.version}"
        if not folder.exists():
            _download(client, reference, version, folder)
        else:
            read_checkpoint(folder, ("ema",))
    assert version.run_id is not None
    return ResolvedModel(version.name, int(version.version), int(version.tags["step"]), version.run_id, folder)


def _find(client: MlflowClient, reference: str, name: str, alias: str | None, number: str | None) -> ModelVersion:
    try:
        if alias is not None:
            version = client.get_model_version_by_alias(name, alias)
        else:
            assert number is not None
            version = client.get_model_version(name, number)
    except MlflowException as error:
        # An alias that does not exist is reported as a wrong parameter.
        if not is_missing(error) and error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise _no_version(client, reference, name) from error
    if version.run_id is None or "step" not in version.tags:
        raise UserError(
            f"model {reference}",
            got="a version that was not made by training",
            expected="a registered checkpoint",
            remedy="choose another version",
        )
    return version


def _download(client: MlflowClient, reference: str, version: ModelVersion, folder: Path) -> None:
    assert version.run_id is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        path = artifact_path(int(version.tags["step"]))
        for name in MODEL_FILES:
            Path(client.download_artifacts(version.run_id, f"{path}/{name}", str(draft))).rename(draft / name)
        read_checkpoint(draft, ("ema",))
        # Others find the folder with all its files or not at all; it is given rights that a temporary one lacks.
        draft.chmod(0o755)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster; the same files
                raise
    except MlflowException as error:
        if not is_missing(error):
            raise
        raise UserError(
            f"model {reference}",
            got="a file missing in its run",
            expected=", ".join(MODEL_FILES),
            remedy="choose another version",
        ) from error
    except UserError as error:
        raise UserError(
            f"model {reference}",
            got=f"in its file {Path(error.what.split()[-1]).name} {error.got}",
            expected=error.expected,
            remedy="choose another version",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _version(client: MlflowClient, model_name: str, run_id: str, step: int | None = None) -> ModelVersion | None:
    """The newest version that training has made of a run, or of one step of it; None if there is none."""
    chosen = f"name = '{model_name}' and run_id = '{run_id}'" + ("" if step is None else f" and tags.step = '{step}'")
    found = every(
        lambda token: client.search_model_versions(
            chosen, max_results=_PAGE, order_by=["version_number DESC"], page_token=token
        )
    )
    return next((version for version in found if "step" in version.tags), None)


def _no_version(client: MlflowClient, reference: str, name: str) -> UserError:
    """What there is instead of a version: this model's versions and aliases, or the names of all models."""
    models = {model.name: model for model in every(lambda token: client.search_registered_models(page_token=token))}
    numbers = [
        int(version.version)
        for version in every(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))
    ]
    got, remedy = "no such version", "choose one of these, or train and register the model first"
    if name in models and numbers:
        expected = (
            f"models:/{name}/NUMBER from {min(numbers)} to {max(numbers)}, or models:/{name}@latest, the highest of "
            "them"
        )
        aliases = sorted(client.get_registered_model(name).aliases)
        expected += ", or one of the aliases " + ", ".join(aliases) if aliases else ""
    elif name in models:
        got, expected = "a registered model without versions", "one with a version, which a checkpoint becomes"
        remedy = "wait until its training has written a checkpoint, or choose another model"
    elif models:
        got, expected = "no such model", "one of the models " + ", ".join(sorted(models))
    else:
        got, expected, remedy = "no such model", "a registered one, but there is none yet", "train a model first"
    return UserError(f"model {reference}", got=got, expected=expected, remedy=remedy)
