"""A saved model: a folder of a weights file, a config and a model card, in the layout of a model hub.

Unlike a checkpoint it holds nothing to train on, and its files can be read by whoever knows safetensors and JSON. The
config names the SHA-256 of the weights: files of two models never pass for one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from drl_dist.build import weight_shapes
from drl_dist.checkpoints.configs import config_from_dict
from drl_dist.checkpoints.format import parse_json_object
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.nested import to_dict
from drl_dist.common.validation import local_of
from drl_dist.common.version import installed_version
from drl_dist.config.import_paths import check_allowed
from drl_dist.config.tree import Experiment
from drl_dist.data.filesystem import Folder, check_reachable
from drl_dist.library.card import model_card

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT, VERSION = "drl_dist.model", 1
MAX_CONFIG_BYTES = 2**20
_REMEDY = "get the folder again, or save the model anew"


@dataclass(frozen=True)
class SavedModel:
    """What the files of a saved model hold."""

    experiment: Experiment
    weights: dict[str, Tensor]
    step: int
    data: dict[str, Any]
    weights_sha256: str
    """Of the file of weights."""
    config_sha256: str
    """Of the config as it is on storage."""


def write_model(
    folder: str | os.PathLike[str],
    experiment: Experiment,
    weights: Mapping[str, Tensor],
    *,
    step: int,
    data: Mapping[str, Any],
) -> None:
    """Write a saved model; see `drl_dist.library.held.HeldModel.save`.

    Raises:
        UserError: the place is not a local folder, holds something else, or cannot be written.
    """
    path = local_of(os.fspath(folder), "folder of the model").resolve()
    before = _recorded_before(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:80]}-", suffix=".part", dir=path.parent) as temporary:
            draft = Path(temporary) / "model"
            draft.mkdir()
            _write_files(draft, experiment, weights, step=step, data=data)
            if before is None:
                # All files appear at once; an empty folder gives way.
                draft.replace(path)
            else:
                _replace_files(draft, path, before)
    except OSError as error:
        raise UserError(
            f"folder of the model {path}",
            got=error.strerror or str(error),
            expected="a folder that can be written",
            remedy="choose another folder, or make room",
        ) from error


def saved_model(place: str, allow_code: Collection[str] = ()) -> SavedModel | None:
    """The saved model in a folder of any storage; None if the folder holds none.

    Raises:
        UserError: the storage does not answer, or as `read_model`.
    """
    check_reachable(place)
    folder = Folder(place)
    if (local := folder.local) is not None:
        # Also where it is a link, as in the cache of a model hub.
        return read_model(local, allow_code) if (local / WEIGHTS).exists() else None
    sizes = folder.sizes()
    if WEIGHTS not in sizes:
        return None
    with tempfile.TemporaryDirectory(prefix="drl-model-") as temporary:
        for name in (CONFIG, WEIGHTS):
            # A missing file is not an error here: reading the folder says which one it is.
            if name in sizes and (name != CONFIG or sizes[name] <= MAX_CONFIG_BYTES):
                (Path(temporary) / name).write_bytes(folder.read(name))
        return read_model(Path(temporary), allow_code)


def read_model(folder: Path, allow_code: Collection[str] = ()) -> SavedModel:
    """Read a saved model, which may come from anybody: nothing in it is run, and only what fits the config is loaded.

    Args:
        folder: that `write_model` wrote, or a copy of it.
        allow_code: import paths that the config may name.

    Raises:
        UserError: a file is missing or damaged, the weights are not those of the config, or it names code that was not
            allowed.
    """
    text = _read(folder, CONFIG, MAX_CONFIG_BYTES)
    source = f"saved model {folder / CONFIG}"
    config = parse_json_object(text, source=source)
    experiment, step, sha256, data = _parsed(config, source)
    check_allowed(experiment, allow_code, source)
    content = _read(folder, WEIGHTS)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise _refusal(folder / WEIGHTS, f"SHA-256 {found[:12]}…", f"SHA-256 {sha256[:12]}…, as {CONFIG} says")
    try:
        # As safetensors would not give them: in one order.
        weights = dict(sorted(load(content).items()))
    except (SafetensorError, ValueError) as error:
        raise _refusal(folder / WEIGHTS, str(error).splitlines()[0], "safetensors") from error
    _check_shapes(folder / WEIGHTS, experiment, weights)
    return SavedModel(experiment, weights, step, data, found, hashlib.sha256(text).hexdigest())


def _write_files(
    folder: Path, experiment: Experiment, weights: Mapping[str, Tensor], *, step: int, data: Mapping[str, Any]
) -> None:
    version = installed_version()
    metadata = {"format": "pt", "library": "drl_dist", "version": version, "preset": experiment.preset}
    # Copies, in the plain order: safetensors takes neither views nor channels-last tensors.
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={**metadata, "step": str(step)})
    (folder / CARD).write_text(model_card(experiment, weights, step=step, data=data, version=version))
    config = {
        "format": FORMAT,
        "version": VERSION,
        "drl_dist": version,
        "step": step,
        "data": dict(data),
        "sha256": {name: _sha256(folder / name) for name in (WEIGHTS, CARD)},
        "experiment": to_dict(experiment),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _replace_files(draft: Path, path: Path, before: Mapping[str, Any]) -> None:
    """Put the files of a model in the place of those of another one; every other file of the folder stays."""
    card = path / CARD
    recorded = before.get("sha256")
    is_ours = isinstance(recorded, dict) and card.is_file() and recorded.get(CARD) == _sha256(card)
    # The config, which knows the weights' checksum, last.
    for name in (WEIGHTS, *((CARD,) if is_ours or not card.exists() else ()), CONFIG):
        (draft / name).replace(path / name)


def _recorded_before(path: Path) -> dict[str, Any] | None:
    """The config of the saved model that a folder holds; None for a new or an empty folder.

    Raises:
        UserError: the place is a file, or holds something else.
    """
    if not path.exists() and not path.is_symlink():
        return None
    remedy = "choose a new folder"
    if not path.is_dir():
        raise UserError(f"folder of the model {path}", got="a file", expected="a folder", remedy=remedy)
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return None
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise UserError(
            f"folder of the model {path}",
            got=f"{shown} of something else",
            expected="a new or an empty folder, or one with a saved model",
            remedy=remedy,
        )
    return config


def _parsed(config: dict[str, Any], source: str) -> tuple[Experiment, int, str, dict[str, Any]]:
    """Experiment, step, the weights' SHA-256 and what is known of the data."""
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise UserError(
            source,
            got=f"format {config.get('format')!r}, version {config.get('version')!r}",
            expected=f"{FORMAT!r}, version {VERSION}, as drl_dist's models have",
            remedy="choose the folder of such a model, or install a newer drl_dist",
        )
    sha256, step, data, experiment = (config.get(name) for name in ("sha256", "step", "data", "experiment"))
    fields = {
        "sha256": isinstance(sha256, dict) and isinstance(sha256.get(WEIGHTS), str),
        "step": type(step) is int and step >= 0,
        "data": isinstance(data, dict),
        "experiment": isinstance(experiment, dict),
    }
    for name, holds in fields.items():
        if not holds:
            raise UserError(
                f"{source}, field {name}",
                got=str(config.get(name))[:80],
                expected="what drl_dist writes there",
                remedy=_REMEDY,
            )
    assert isinstance(experiment, dict) and isinstance(sha256, dict) and isinstance(data, dict)
    assert isinstance(step, int)
    return config_from_dict(Experiment, experiment, source=source), step, sha256[WEIGHTS], data


def _check_shapes(path: Path, experiment: Experiment, weights: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless names and shapes are those of the config's network, which is not made for this."""
    model = experiment.model
    # Before a network of that many modules is laid out.
    if model.is_built_in and model.num_res_blocks * len(model.width_multipliers) > len(weights):
        raise _refusal(
            path, counted(len(weights), "tensor"), f"those of {counted(model.num_res_blocks, 'block')} a level"
        )
    try:
        expected = weight_shapes(experiment)
    except (RuntimeError, OverflowError) as error:
        # Sizes whose product is no size any more.
        raise _refusal(path.parent / CONFIG, str(error).splitlines()[0], "a network that can be made") from error
    if missing := sorted(expected.keys() ^ weights.keys()):
        names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise _refusal(path, f"tensors that differ in {names}", "those of the config's network")
    for name, value in sorted(weights.items()):
        if tuple(value.shape) != expected[name]:
            raise _refusal(path, f"{name} of shape {tuple(value.shape)}", f"{expected[name]} by the config")
        if value.is_floating_point() and value.dtype != torch.float32:
            raise _refusal(path, f"{name} of {value.dtype}", "float32")


def _read(folder: Path, name: str, most: int | None = None) -> bytes:
    path = folder / name
    try:
        size = path.stat().st_size
        if most is not None and size > most:
            raise _refusal(path, f"{size} bytes", f"at most {most}")
        return path.read_bytes()
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise _refusal(path, got, f"a folder with {WEIGHTS} and {CONFIG}") from error


def _refusal(path: Path, got: str, expected: str) -> UserError:
    return UserError(f"saved model {path}", got=got, expected=expected, remedy=_REMEDY)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
