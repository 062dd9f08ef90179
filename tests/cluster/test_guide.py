"""The guide: its shell is shell, its job is a job, and it makes every name that the cluster's files use."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from drl_dist.jobs.common.options import parse_options
from drl_dist.jobs.serve.options import ServeOptions, check_serve
from tests.cluster.facts import CLUSTER, PROJECT
from tests.support import ROOT, subprocess_environment

GUIDE = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
SHELL = "\n".join(BLOCKS)
FILES = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("block", BLOCKS)
def test_its_shell_is_shell(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_its_job_is_a_job() -> None:
    joined = SHELL.replace("\\\n", " ")
    (submitted,) = [line for line in joined.splitlines() if "ray job submit" in line and "train" in line]
    # As the shell hands it over: $BUCKET is set further up in the guide.
    command = shlex.split(submitted.partition(" -- ")[2].replace("$BUCKET", "my-bucket"))
    assert command[:2] == ["python", "jobs/train_lsun128.py"]
    done = subprocess.run(
        [sys.executable, *command[1:], "--dry-run"],
        cwd=ROOT,
        env=subprocess_environment({"PATH": os.environ["PATH"]}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["use_gpu"] is True and run["run_name"] == "church-1"
    # The formula of the costs names fields that the output of --dry-run holds.
    assert run["experiment"]["train"]["num_steps"] > 0 and run["experiment"]["train"]["batch_size"] > 0
    assert f"`checkpoint.every_steps` is {run['checkpoint']['every_steps']} by default" in GUIDE


def test_its_server_is_a_server() -> None:
    joined = SHELL.replace("\\\n", " ")
    (submitted,) = [line for line in joined.splitlines() if "jobs/serve.py" in line]
    command = shlex.split(submitted.partition(" -- ")[2])
    options = parse_options(ServeOptions, ServeOptions(), command[2:], description="")
    check_serve(options)
    assert command[:2] == ["python", "jobs/serve.py"] and options.use_gpu


def test_it_makes_every_account_and_secret() -> None:
    text = "\n".join(path.read_text() for path in FILES)
    accounts = set(re.findall(r"(drl-[a-z]+)@my-project", text))
    accounts |= set(re.findall(r"serviceAccountName: (\S+)", text))
    secrets = set(re.findall(r"--secret=([a-z-]+)", text)) | set(re.findall(r"secret (drl-[a-z-]+)\)", text))
    assert {"drl-head", "drl-worker"} <= accounts and len(secrets) == 3
    made = {
        name
        for listed in re.findall(r"^for (?:account|name) in (.*); do$", SHELL, re.MULTILINE)
        for name in listed.split()
    }
    assert accounts | secrets <= made


def test_it_makes_every_kubernetes_secret_with_its_keys() -> None:
    wanted: set[tuple[str, str]] = {("drl-ray-token", "auth_token")}
    for path in FILES:
        wanted |= set(re.findall(r"secretKeyRef:\s+name: (\S+)\s+key: (\S+)", path.read_text()))
        # Mounted as a folder, with a file for each key.
        wanted |= {(name, "token") for name in re.findall(r"secret:\s+secretName: (\S+)", path.read_text())}
    made: set[tuple[str, str]] = set()
    for line in SHELL.replace("\\\n", " ").splitlines():
        if found := re.search(r"create secret generic (\S+)", line):
            made |= {(found.group(1), key) for key in re.findall(r"--from-literal=(\w+)=", line)}
    assert wanted == made and len(made) == 4


def test_its_substitutions_reach_every_file_that_needs_them() -> None:
    (names,) = re.findall(r'^sed -i "(s/[^"]+)" (.*)$', SHELL, re.MULTILINE)
    reached = {path.name for pattern in names[1].split() for path in CLUSTER.glob(pattern.removeprefix("var/cluster/"))}
    assert all(word in names[0] for word in ("s/my-project/$PROJECT/g", "s/my-bucket/$BUCKET/g"))
    assert {path.name for path in FILES if re.search("my-(project|bucket)", path.read_text())} <= reached
    assert f"drl/drl_dist:{PROJECT['version']}" in SHELL


def test_its_table_lists_every_file() -> None:
    listed = set(re.findall(r"^\| `(cluster/[^`]+)` \|", GUIDE, re.MULTILINE))
    assert listed == {str(path.relative_to(ROOT)) for path in FILES if path.name != "Dockerfile.dockerignore"}
