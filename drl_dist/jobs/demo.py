"""The demonstration on one machine: shards, a Ray head, an MLflow server, training and sampling as submitted jobs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drl_dist.common.durations import duration
from drl_dist.common.errors import UserError
from drl_dist.common.program import EXIT_INTERRUPTED
from drl_dist.common.validation import local_of
from drl_dist.localhost import MlflowServer, RayHead, StartError, end_on_signals, submit_job

RUN_NAME = "demo"
_TRAIN = "jobs/train_digits.py"
_WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of ``jobs/demo.py``."""

    folder: str = "var/demo"
    """Where everything is kept; what is there is used again."""
    num_images: int = 128
    """Images to generate."""
    train_options: str = "--train.num-steps 680 --optim.first-objective-steps 530"
    """Further options of jobs/train_digits.py, in one string; by default two thirds of the preset's steps, after which
    most digits can be read."""
    serve: bool = False
    """Only show the MLflow page of an earlier demonstration."""


def demo(options: DemoOptions, repository: Path) -> int:
    """Run the demonstration; the exit status.

    Args:
        repository: the checkout, which jobs are submitted from.

    Raises:
        UserError: a step failed. Whatever was started has been stopped.
    """
    end_on_signals()
    folder = local_of(options.folder, "option --folder").resolve()
    try:
        return _serve(folder) if options.serve else _run(options, folder, repository)
    except StartError as error:
        print(error, file=sys.stderr)
        raise UserError(
            "demonstration",
            got=str(error).splitlines()[0],
            expected="a server that starts",
            remedy="look at its last lines above",
        ) from error
    except KeyboardInterrupt:
        print("stopped, and all that was started with it; the same command continues from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(options: DemoOptions, folder: Path, repository: Path) -> int:
    began = time.monotonic()
    digits, runs, samples = folder / "digits", folder / "runs", folder / "samples"
    train_options = shlex.split(options.train_options)
    # Before anything is started: what cannot be trained is refused here.
    dry = [sys.executable, _TRAIN, *train_options, "--dry-run"]
    asked = subprocess.run(dry, cwd=repository, stdout=subprocess.PIPE, check=False)
    _check("its training options", asked.returncode, folder)
    # The name that the model has in the registry.
    model_name = json.loads(asked.stdout)["experiment"]["preset"]

    def say(text: str) -> None:
        print(f"\n=== {text} ({duration(time.monotonic() - began)} so far)", flush=True)

    say(f"1 of 4: scikit-learn's handwritten digits as shards in {digits}")
    _check(
        "writing the shards",
        subprocess.run(
            [sys.executable, "-m", "datasets_prep.digits", "--resolution", "8", "--out", str(digits)],
            cwd=repository,
            check=False,
        ).returncode,
        folder,
    )
    with ExitStack() as stack:
        say("2 of 4: an MLflow server and a Ray head on 127.0.0.1")
        mlflow = stack.enter_context(MlflowServer(folder / "mlflow"))
        print(f"MLflow page, while this runs: {mlflow.uri}", flush=True)
        head = stack.enter_context(RayHead(num_cpus=_WORKERS))

        def submit(what: str, job: str, arguments: Sequence[str]) -> None:
            status = submit_job(
                head,
                ["python", job, *arguments],
                environment=mlflow.environment(),
                working_dir=repository,
                echo=lambda line: print(line, flush=True),
            )
            _check(what, status, folder)

        say("3 of 4: training")
        submit(
            "training",
            _TRAIN,
            [
                "--data",
                str(digits),
                "--run-name",
                RUN_NAME,
                "--storage",
                str(runs),
                "--num-workers",
                str(_WORKERS),
                *train_options,
            ],
        )
        say("4 of 4: sampling")
        submit(
            "sampling",
            "jobs/sample.py",
            [
                "--model",
                f"models:/{model_name}@latest",
                "--out",
                str(samples),
                "--num-images",
                str(options.num_images),
                "--shard-size",
                "32",
                "--batch-size",
                "32",
                "--num-workers",
                str(_WORKERS),
                "--real",
                str(digits),
            ],
        )
    say("done, and all that was started is stopped")
    serve = [os.path.relpath(sys.executable), "jobs/demo.py", "--serve"]
    play = ["make", "play"]
    if options.folder != DemoOptions.folder:
        serve += ["--folder", options.folder]
        play = [serve[0], "jobs/serve.py", "--model", str(runs / RUN_NAME), "--data", str(digits), "--open-page"]
    print(
        f"sample grid, generated beside real: {samples / 'grid.png'}\n"
        f"from noise to image, level by level: {samples / 'progression.png'}\n"
        f"sample shards and their manifest: {samples}\n"
        f"MLflow page (curves, samples, model versions): {shlex.join(serve)}\n"
        f"page to play with the model: {shlex.join(play)}",
        flush=True,
    )
    return 0


def _serve(folder: Path) -> int:
    """Show the MLflow page until Ctrl-C."""
    if not (folder / "mlflow" / "mlflow.db").exists():
        raise UserError(
            "option --folder",
            got=f"{folder}, where no MLflow database is",
            expected="the folder of an earlier demonstration",
            remedy="run `make demo` first",
        )
    with MlflowServer(folder / "mlflow") as server:
        print(f"MLflow page: {server.uri} (Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(1)


def _check(what: str, status: int, folder: Path) -> None:
    if status:
        raise UserError(
            f"demonstration, {what}",
            got=f"exit status {status}",
            expected="0",
            remedy="look at its last lines above; the same command continues from here, and without "
            f"{folder} it starts afresh",
        )
