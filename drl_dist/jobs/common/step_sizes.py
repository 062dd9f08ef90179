"""Step sizes as JSON, in any folder, bound to the model that they were adapted for."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.mcmc.adaptation import DensityName, StepSizes

STEP_SIZES_NAME = "step_sizes.json"
_WRITERS: dict[DensityName, str] = {"conditional": "a long run", "marginal": "a likelihood job"}
_REMEDY = "adapt the step sizes of this model again, by leaving out --schedule"


@dataclass(frozen=True, kw_only=True)
class _ScheduleFile:
    format: Literal["drl_dist.step_sizes"] = "drl_dist.step_sizes"
    version: Literal[1] = 1
    ema_sha256: str
    """Checksum of the averaged weights."""
    schedule: StepSizes


_FILE = TypeAdapter(tuple[_ScheduleFile], config=ConfigDict(extra="forbid", strict=True))


def write_step_sizes(folder: str, schedule: StepSizes, ema_sha256: str) -> None:
    """Write ``step_sizes.json`` into a folder on any filesystem.

    Args:
        folder: its URL.
        schedule: what was found.
        ema_sha256: checksum of the averaged weights that it was found for.

    Raises:
        UserError: the storage does not take it.
    """
    content = dataclasses.asdict(_ScheduleFile(ema_sha256=ema_sha256, schedule=schedule))
    Folder(folder).write(STEP_SIZES_NAME, (json.dumps(content, indent=2) + "\n").encode())


def read_step_sizes(folder: str, ema_sha256: str, num_levels: int, density: DensityName = "conditional") -> StepSizes:
    """The schedule in a folder, if it is one for these weights.

    Args:
        folder: its URL.
        ema_sha256: checksum of the averaged weights.
        num_levels: T of the model.
        density: whose step sizes are wanted.

    Raises:
        UserError: there is none, it cannot be read, or it was adapted for another model or other densities.
    """
    check_reachable(folder)
    place = Folder(folder).url_of(STEP_SIZES_NAME)
    try:
        text = Folder(folder).read(STEP_SIZES_NAME)
    except FileNotFoundError as error:
        raise UserError(
            f"step sizes {place}", got="no such file", expected=f"what {_WRITERS[density]} wrote there", remedy=_REMEDY
        ) from error
    try:
        file = _FILE.validate_json(b"[" + text + b"]")[0]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(name) for name in first["loc"][1:])
        raise UserError(
            f"step sizes {place}" + (f", field {field}" if field else ""),
            got=str(first["input"])[:80],
            expected=first["msg"],
            remedy=_REMEDY,
        ) from error
    if file.ema_sha256 != ema_sha256:
        raise UserError(
            f"step sizes {place}",
            got=f"those of a model with weights {file.ema_sha256[:12]}",
            expected=f"those of the model with weights {ema_sha256[:12]}",
            remedy=_REMEDY,
        )
    if file.schedule.density != density:
        raise UserError(
            f"step sizes {place}",
            got=f"those of {file.schedule.density} densities",
            expected=f"those of {density} densities, as {_WRITERS[density]} writes them",
            remedy=_REMEDY,
        )
    if file.schedule.num_levels != num_levels:
        raise UserError(
            f"step sizes {place}",
            got=counted(file.schedule.num_levels, "level"),
            expected=counted(num_levels, "level"),
            remedy=_REMEDY,
        )
    return file.schedule


def check_leapfrogs(schedule: StepSizes, wanted: int, folder: str | None) -> None:
    """Return if given step sizes are those of as many leapfrog steps as the job makes.

    Raises:
        UserError: they are not; `folder` is where they were read.
    """
    if schedule.num_leapfrog_steps != wanted:
        raise UserError(
            f"step sizes below {folder}",
            got=f"those of {schedule.num_leapfrog_steps} leapfrog steps",
            expected=f"those of {wanted}",
            remedy=f"use --num-leapfrog-steps {schedule.num_leapfrog_steps}, or leave out --schedule",
        )
