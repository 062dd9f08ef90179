"""Running the commands of `datasets_prep` in this process, and reading what they made."""

from __future__ import annotations

import json
import sys
from importlib import import_module

import pytest

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


PNG = encoded(photo(1, 16, 16), "PNG")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]
