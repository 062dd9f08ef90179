"""Running the commands of `datasets_prep` in this process, and reading what they made."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

import datasets_prep._build as build_module
from drl_dist.data.cache import ShardCache
from drl_dist.data.decode import parse_sample
from drl_dist.data.index import ShardIndex
from tests.data.published import encoded, photo


def prepare(name: str, monkeypatch: pytest.MonkeyPatch, *options: object) -> int:
    monkeypatch.setattr(sys, "argv", [name, *map(str, options), "--workers", "1"])
    return import_module(f"datasets_prep.{name}").main()


def facts(index: ShardIndex) -> list[dict[str, object]]:
    found = []
    for row in index.shards:
        shard = ShardCache(index.url).open(row)
        found += [json.loads(parse_sample(shard, sample, index.url)["json"]) for sample in range(row.num_samples)]
        shard.close()
    return found


def kill_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    """Let the next preparation end after so many shards, as a kill would."""
    original, made = build_module._make_shard, 0

    def dying(task: build_module._Task) -> tuple[int, dict[str, object]]:
        nonlocal made
        if made == shards:
            raise KeyboardInterrupt
        made += 1
        return original(task)

    monkeypatch.setattr(build_module, "_make_shard", dying)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


PNG = encoded(photo(1, 16, 16), "PNG")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]
