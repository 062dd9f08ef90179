"""A server that cannot be is refused in one sentence, before anything starts."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError
from ray.serve.schema import ServeStatus

from drl_dist.common.errors import UserError
from drl_dist.config.tree import Experiment, ModelConfig
from drl_dist.jobs.serve import driver
from drl_dist.jobs.serve.application import build
from drl_dist.jobs.serve.driver import serve_model
from drl_dist.jobs.serve.options import ServeOptions, check_serve
from drl_dist.library.model import Model
from drl_dist.localhost.server import HOST, free_ports
from drl_dist.training.state import TrainState
from tests.support import ROOT, subprocess_environment, write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", width=4, num_chain_steps=2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": ""}, "--model"),
        ({"min_replicas": 0}, "option --min-replicas: got 0, expected at least 1"),
        (
            {"min_replicas": 3, "max_replicas": 2},
            "option --max-replicas: got 2, expected at least --min-replicas, 3",
        ),
        ({"max_batch": 0}, "option --max-batch: got 0, expected at least 1"),
        ({"max_waiting": -1}, "option --max-waiting: got -1, expected at least 0"),
        ({"max_seconds": 0.0}, "option --max-seconds: got 0.0, expected more than 0"),
        ({"max_seconds": float("nan")}, "option --max-seconds: got nan, expected more than 0"),
        ({"cpus_per_replica": 0}, "option --cpus-per-replica: got 0, expected at least 1"),
        ({"port": 0}, "option --port: got 0, expected 1 to 65535"),
        ({"port": 65536}, "option --port: got 65536, expected 1 to 65535"),
        ({"host": "0.0.0.0"}, "option --host: got 0.0.0.0 without --token-file, expected one of 127.0.0.1, localhost"),
        ({"host": "::"}, "option --host: got :: without --token-file"),
        ({"data": "s3:/digits"}, "--data"),
    ],
)
def test_options_that_no_server_can_have(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        check_serve(replace(ServeOptions(model="/models/church"), **change))
    assert sentence in str(raised.value)


def test_a_token_lets_it_listen_elsewhere() -> None:
    check_serve(ServeOptions(model="/models/church", host="0.0.0.0", token_file="/run/token"))


def refused(options: ServeOptions) -> str:
    """What the server says, which has started no Ray."""
    with pytest.raises(UserError) as raised:
        serve_model(options)
    assert not ray.is_initialized()
    return str(raised.value)


def test_a_port_that_is_taken(checkpoint: Path) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        sentence = refused(ServeOptions(model=str(checkpoint), port=port))
    assert sentence.startswith(f"--host {HOST} --port {port}: got an address in use, expected a free port")


def test_an_address_of_another_machine(checkpoint: Path, tmp_path: Path) -> None:
    options = ServeOptions(model=str(checkpoint), host="192.0.2.1", token_file=str(tmp_path / "token"))
    assert refused(options).startswith("--host 192.0.2.1 --port 8000: got ")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    sentence = refused(ServeOptions(model=str(tmp_path / "missing"), port=free_ports(1)[0]))
    assert str(tmp_path / "missing") in sentence


def test_data_of_another_size(tmp_path: Path, digits: Path) -> None:
    config = ModelConfig(resolution=16, channels=1, width=4, width_multipliers=(1, 2), num_res_blocks=1)
    experiment = Experiment(preset="tiny", model=config)
    Model(experiment, TrainState.create(experiment).ema.shadow, step=0).save(tmp_path / "model")
    sentence = refused(ServeOptions(model=str(tmp_path / "model"), data=str(digits), port=free_ports(1)[0]))
    assert "got 8x8" in sentence and "expected 16x16" in sentence


def test_nothing_is_written_by_a_server_that_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    refused(ServeOptions(model=str(tmp_path / "missing"), port=free_ports(1)[0], token_file=str(token)))
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        refused(ServeOptions(model=str(checkpoint), port=other.getsockname()[1], token_file=str(token)))
    assert not token.exists()


@pytest.mark.integration
def test_the_command_says_it_in_one_line_and_ends_with_status_2(tmp_path: Path) -> None:
    for words in (["--model", str(tmp_path / "missing")], ["--model", str(tmp_path), "--host", "0.0.0.0"], []):
        done = subprocess.run(
            [sys.executable, "jobs/serve.py", *words],
            cwd=ROOT,
            env=subprocess_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and ": got " in done.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            {"model": "/models/church", "modle": 1},
            "field modle: got a field that does not exist, expected one of model,",
        ),
        ({"model": "/models/church", "max_batch": "many"}, "field max_batch: got 'many', expected "),
        ({"model": "/models/church", "max_batch": 0}, "--max-batch: got 0, expected at least 1"),
        ({}, "got no model, expected model"),
        ({"model": "/models/church", "token_file": "/missing/token"}, "/missing/token"),
    ],
)
def test_args_of_a_serve_config_that_no_server_can_have(
    checkpoint: Path, args: dict[str, object], sentence: str
) -> None:
    if "token_file" in args:
        args = args | {"model": str(checkpoint)}
    with pytest.raises(UserError) as raised:
        build(args)
    assert sentence in str(raised.value)


def test_a_server_that_somebody_else_has_stopped_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def status() -> ServeStatus:
        raise RayActorError

    monkeypatch.setattr(driver.serve, "status", status)
    with pytest.raises(UserError, match="got an application that has ended, expected one that runs"):
        driver._watch(threading.Event())
