"""Names of registered models: of images of one's own, and what keeps them apart from those of the presets."""

from __future__ import annotations

import re
import sys

from drl_dist.common.errors import UserError
from drl_dist.config.presets import row_of
from drl_dist.config.rules import ARRAY_SUFFIX
from drl_dist.config.tree import RunConfig

_GENERAL = frozenset({"data", "images", "shards", "train", "training", "test", "val", "valid", "validation"})
"""Names of folders that say nothing of what is in them."""


def model_name_for(data: str, run_name: str) -> str | None:
    """A name for the models of a data set: its folder's, or the one above if that says nothing, else the run's.

    Args:
        data: URL of the data; may be empty.
        run_name: may be empty.

    Returns:
        The name; None if neither is given.

    Raises:
        UserError: the name is that of a preset's models, which nobody would expect to be of other images.
    """
    path = data.partition("://")[2] if "://" in data else data
    folders = [part for part in path.removesuffix(ARRAY_SUFFIX).split("/") if part]
    # Of a URL the first one is the bucket.
    folders = folders[1:] if "://" in data and not data.startswith("file:") else folders
    names = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._")[:100] for part in reversed(folders[-2:])]
    for name in (*names, run_name):
        if name and name.lower() not in _GENERAL:
            if row_of(name) is not None:
                raise UserError(
                    "option --model-name",
                    got=f"none, and {name}, after --{'data' if name in names else 'run-name'}, is that of a preset",
                    expected="a name that says whose images the models are of",
                    remedy="add --model-name NAME",
                )
            return name
    return run_name or None


def check_model_name(run: RunConfig, data_name: str) -> None:
    """Return unless the run would add models of other images to those of a preset without being asked to.

    Where only the name of the data differs, which whoever prepared them chose, a line says so.

    Args:
        run: the run.
        data_name: of its data, from their index.

    Raises:
        UserError: its images have another shape than the preset's, and `model_name` is not given.
    """
    row, model = row_of(run.registered_model), run.experiment.model
    if run.model_name is not None or row is None:
        return
    if (row.resolution, row.channels) != (model.resolution, model.channels):
        raise UserError(
            "option --model-name",
            got=f"none for images of {model.resolution}x{model.resolution} pixels with {model.channels} channels",
            expected=f"a name of their own, since {run.registered_model} are models of {row.resolution}x"
            f"{row.resolution} pixels with {row.channels}",
            remedy="add --model-name NAME, or train with jobs/train.py",
        )
    if not run.registered_model.startswith(data_name.partition("_")[0]):
        print(
            f"models of the data {data_name} become versions of {run.registered_model}; --model-name gives them a "
            "name of their own",
            file=sys.stderr,
            flush=True,
        )
