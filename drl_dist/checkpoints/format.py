"""One checkpoint, one folder: tensors as safetensors, the rest as JSON, and checksums written last.

A folder without ``checksums.json`` is unfinished. Reading verifies the size and SHA-256 of every file it uses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from drl_dist.checkpoints.configs import config_from_dict
from drl_dist.common.errors import UserError
from drl_dist.common.nested import to_dict
from drl_dist.config.tree import Experiment

if TYPE_CHECKING:
    # A driver handles checkpoints without a tensor: torch is imported where there are some.
    from torch import Tensor

PARTS = ("weights", "ema", "optimizer")
CHECKSUMS, CONFIG, STATE = "checksums.json", "config.json", "state.json"
MODEL_FILES = ("ema.safetensors", CONFIG, STATE, CHECKSUMS)
"""What of a checkpoint is a model: enough to sample from it, not to train on."""
RESTORE_REMEDY = "restore the file from a copy, or delete this checkpoint folder so that an older one is used"


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """Where a run stood."""

    step: int
    """Training steps done."""
    images_seen: int
    """Images trained on, over all workers."""
    next_position: int
    """Position in the global stream of samples of the next image to train on."""
    seed: int
    """The run's seed; it, the step and the positions determine all further noise and data order."""
    data_fingerprint: str
    """Fingerprint of the shard index trained on."""
    world_size: int
    """Workers that wrote the checkpoint; another number may resume it."""

    @classmethod
    def after(cls, step: int, experiment: Experiment, data_fingerprint: str, world_size: int) -> CheckpointState:
        """The state of a run that has made so many steps."""
        images_seen = step * experiment.train.batch_size
        return cls(
            step=step,
            images_seen=images_seen,
            next_position=images_seen,
            seed=experiment.train.seed,
            data_fingerprint=data_fingerprint,
            world_size=world_size,
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint."""

    experiment: Experiment
    state: CheckpointState
    tensors: dict[str, dict[str, Tensor]]
    """Named tensors on the CPU of every part that was asked for."""


_STATE = TypeAdapter(tuple[CheckpointState], config=ConfigDict(extra="forbid", strict=True))


def write_checkpoint(
    folder: Path, parts: Mapping[str, Mapping[str, Tensor]], state: CheckpointState, experiment: Experiment
) -> None:
    """Write a checkpoint into an empty or new folder; ``checksums.json`` appears last, in one move.

    Args:
        folder: where to write.
        parts: named tensors of each of `PARTS` (or of some of them), on any device.
        state: where the run stands.
        experiment: what was trained.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in parts.items():
        # Copies: safetensors refuses views, and channels-last weights are stored in the plain order.
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, folder / part_file(name)
        )
    _write_json(folder / CONFIG, to_dict(experiment))
    _write_json(folder / STATE, dataclasses.asdict(state))
    files = [*(part_file(name) for name in parts), CONFIG, STATE]
    write_checksums(folder, files)


def write_checksums(folder: Path, files: Iterable[str]) -> None:
    """Record size and SHA-256 of `files`; their presence completes the checkpoint."""
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in files}
    draft = folder / (CHECKSUMS + ".draft")
    _write_json(draft, entries)
    draft.replace(folder / CHECKSUMS)


def read_checkpoint(folder: Path, parts: Iterable[str] = ("ema",)) -> Checkpoint:
    """Read and verify a checkpoint folder.

    Args:
        folder: a folder that `write_checkpoint` wrote, or a copy of it; parts that are not asked for may be absent.
        parts: which of `PARTS` to load.

    Raises:
        UserError: the folder is unfinished, or a file is missing, truncated or altered.
    """
    checksums = _read_json(folder / CHECKSUMS)
    names = (CONFIG, STATE, *map(part_file, parts))
    return parse_checkpoint({name: _read_verified(folder, name, checksums) for name in names}, source=str(folder))


def parse_checkpoint(files: Mapping[str, bytes], *, source: str) -> Checkpoint:
    """The checkpoint that verified files hold.

    Args:
        files: content by file name: configuration, state, and those of `PARTS` that are wanted.
        source: folder or URL of the files, for the error message.

    Raises:
        UserError: a file is not what its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    tensors: dict[str, dict[str, Tensor]] = {}
    for part in PARTS:
        if (name := part_file(part)) not in files:
            continue
        try:
            # Which safetensors gives in another order each time, so that ranks would gather unlike tensors.
            tensors[part] = dict(sorted(load(files[name]).items()))
        except SafetensorError as error:
            raise UserError(
                f"checkpoint file {source}/{name}", got=str(error), expected="safetensors", remedy=RESTORE_REMEDY
            ) from error
    config = f"checkpoint file {source}/{CONFIG}"
    return Checkpoint(
        experiment=config_from_dict(Experiment, parse_json_object(files[CONFIG], source=config), source=config),
        state=parse_state(files[STATE], source=f"checkpoint file {source}/{STATE}"),
        tensors=tensors,
    )


def part_file(part: str) -> str:
    """File name of one of `PARTS`."""
    return f"{part}.safetensors"


def parse_json_object(text: bytes, *, source: str) -> dict[str, Any]:
    """A JSON object, or a `UserError` that names `source`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(source, got=f"no JSON ({error})", expected="a JSON object", remedy=RESTORE_REMEDY) from error
    if not isinstance(value, dict):
        raise UserError(source, got=f"a JSON {type(value).__name__}", expected="a JSON object", remedy=RESTORE_REMEDY)
    return value


def _read_verified(folder: Path, name: str, checksums: dict[str, Any]) -> bytes:
    path = folder / name
    entry = checksums.get(name)
    if not isinstance(entry, dict):
        raise UserError(
            f"checkpoint {folder}",
            got=f"no checksum of {name}",
            expected=f"{name} in {CHECKSUMS}",
            remedy=RESTORE_REMEDY,
        )
    size = path.stat().st_size if path.is_file() else None
    if size != entry.get("bytes"):
        raise UserError(
            f"checkpoint file {path}",
            got="no file" if size is None else f"{size} bytes",
            expected=f"{entry.get('bytes')} bytes",
            remedy=RESTORE_REMEDY,
        )
    content = path.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != entry.get("sha256"):
        raise UserError(
            f"checkpoint file {path}",
            got=f"SHA-256 {digest}",
            expected=f"SHA-256 {entry.get('sha256')}",
            remedy=RESTORE_REMEDY,
        )
    return content


def parse_state(text: bytes, *, source: str) -> CheckpointState:
    """What ``state.json`` says, or a `UserError` that names `source`."""
    try:
        return _STATE.validate_json(b"[" + text + b"]")[0]
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(source, got=first["input"], expected=first["msg"], remedy=RESTORE_REMEDY) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"checkpoint {path.parent}",
            got=f"no {path.name}",
            expected="a complete checkpoint folder",
            remedy=RESTORE_REMEDY,
        )
    return parse_json_object(path.read_bytes(), source=f"checkpoint file {path}")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
