"""The log of damaged samples, which the upload of a checkpoint and the end of a run write."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.data.filesystem import Folder
from drl_dist.data.substitutes import SUBSTITUTES, Substitute, read_substitutes
from drl_dist.jobs.train.faults import damage as damage_module
from drl_dist.jobs.train.faults.damage import Damage


def substitute(position: int) -> Substitute:
    return Substitute(position, "toy-train-00001.tar", position, "damaged", "toy-train-00000.tar", 0)


def test_a_slow_upload_does_not_put_an_older_log_in_the_place_of_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunConfig(experiment=preset("digits"), run_name="borne", storage=str(tmp_path))
    run = dataclasses.replace(run, loader=dataclasses.replace(run.loader, on_damage="substitute"))
    monkeypatch.setattr(damage_module, "_all_bytes", lambda mine, *_: [mine])
    # Its list is not looked at here.
    no_stream: Any = None
    damage = Damage(run, str(tmp_path / "borne"), 0, 1, no_stream, 0, [])
    begun, may_go_on, write = threading.Event(), threading.Event(), Folder.write

    def slow(folder: Folder, name: str, text: bytes) -> None:
        if not begun.is_set():
            begun.set()
            assert may_go_on.wait(60)
        write(folder, name, text)

    monkeypatch.setattr(Folder, "write", slow)
    damage._waiting.append(substitute(3))
    damage.gather(torch.device("cpu"))
    upload = threading.Thread(target=damage.write)
    upload.start()
    assert begun.wait(60)
    damage._waiting.append(substitute(7))
    damage.gather(torch.device("cpu"))
    last = threading.Thread(target=damage.write)
    last.start()
    last.join(0.2)
    may_go_on.set()
    upload.join(60)
    last.join(60)
    assert [one.position for one in read_substitutes(str(tmp_path / "borne"))] == [3, 7]
    assert (tmp_path / "borne" / SUBSTITUTES).exists()
