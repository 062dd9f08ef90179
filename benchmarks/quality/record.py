"""The folder of results: what was asked for, a file for each finished point, and the weights of runs under way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save

from benchmarks.quality.settings import Setting
from drl_dist.common.errors import UserError
from drl_dist.common.nested import differences
from drl_dist.training.state import TrainState

REQUEST, FEATURES, REFERENCE = "request.json", "features.safetensors", "reference.json"
SCORES, TABLE, CURVES, CALIBRATION = "scores.json", "table.md", "curves.png", "calibration.md"
POINTS, SHEETS = "points", "sheets"
_PARTS = ("weights", "ema", "optimizer")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that whoever kills the process leaves the old content or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)


def write_json(path: Path, content: object) -> None:
    """`write_atomically` of JSON that people read."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def open_folder(folder: Path, request: Mapping[str, Any], inner: Sequence[str]) -> None:
    """Create a folder of results and those within it, or go on with that of the same request.

    Raises:
        UserError: it holds something else, or the results of another request.
    """
    place = folder / REQUEST
    if folder.exists() and not folder.is_dir():
        raise UserError("--out", got=f"the file {folder}", expected="a folder", remedy="choose another")
    if place.is_file():
        try:
            before = json.loads(place.read_text())
            others = differences(before, dict(request))
        except (ValueError, TypeError, AttributeError):
            others = [f"{REQUEST} of something else"]
        if others:
            raise UserError(
                f"--out {folder}",
                got=f"the folder of another request ({'; '.join(others)})",
                expected="a new folder, or that of the same request",
                remedy="choose another folder, or repeat the options of this one",
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"--out {folder}",
            got="a folder of something else",
            expected="a new folder, or that of the same request",
            remedy="choose another",
        )
    for name in inner:
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_json(place, request)


@dataclass(frozen=True)
class Record:
    """A folder that belongs to one request."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, request: Mapping[str, Any]) -> Record:
        """Create the folder, or go on with that of the same request. Other settings and seeds are the same request.

        Raises:
            UserError: it holds something else, or the results of another request.
        """
        open_folder(folder, request, (POINTS, SHEETS))
        return cls(folder)

    def point(self, name: str, setting: Setting, seed: int, point: int) -> dict[str, Any] | None:
        """A finished point, or None.

        Raises:
            UserError: it was made when the setting was another.
        """
        place = self._point(name, seed, point)
        if not place.exists():
            return None
        found = json.loads(place.read_text())
        if found["row"] != setting.as_record():
            raise UserError(
                f"setting {name}",
                got=f"results of another definition of it in {place}",
                expected="those of benchmarks/quality/settings.py",
                remedy="choose another folder, or remove them",
            )
        return found

    def add_point(self, name: str, setting: Setting, seed: int, point: int, content: Mapping[str, Any]) -> None:
        """Keep a finished point."""
        heading = {"setting": name, "seed": seed, "point": point, "row": setting.as_record()}
        write_json(self._point(name, seed, point), heading | dict(content))

    def save_state(self, name: str, seed: int, state: TrainState, seconds: float) -> None:
        """Keep the state of a run, and the seconds that it has taken."""
        tensors = {
            f"{part}:{key}": value.contiguous()
            for part, values in state.tensors().items()
            for key, value in values.items()
        }
        about = {"step": str(state.step), "seconds": repr(seconds)}
        write_atomically(self._state(name, seed), save(tensors, about))

    def load_state(self, name: str, seed: int, state: TrainState) -> float:
        """Put a run back to where it was saved, if it was; the seconds that it had taken."""
        place = self._state(name, seed)
        if not place.exists():
            return 0.0
        parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
        for key, value in load_file(place).items():
            part, _, own = key.partition(":")
            parts[part][own] = value
        with safe_open(place, "pt") as file:
            about = file.metadata()
        state.load_tensors(parts, int(about["step"]))
        return float(about["seconds"])

    def drop_state(self, name: str, seed: int) -> None:
        """Forget the state of a run that is over."""
        self._state(name, seed).unlink(missing_ok=True)

    def _point(self, name: str, seed: int, point: int) -> Path:
        return self.folder / POINTS / f"{name}-{seed}-{point}.json"

    def _state(self, name: str, seed: int) -> Path:
        return self.folder / POINTS / f"{name}-{seed}.safetensors"
