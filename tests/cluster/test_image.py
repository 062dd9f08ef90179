"""The image: what it copies exists, its Python and packages are ours, and it runs as nobody special."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import PurePosixPath

from tests.cluster.facts import CLUSTER, CONSTRAINTS, IMAGE, PROJECT, USER_ID
from tests.support import ROOT

TEXT = (CLUSTER / "Dockerfile").read_text()
IGNORED = (CLUSTER / "Dockerfile.dockerignore").read_text().split("\n")


def instructions() -> list[tuple[str, str]]:
    """Every instruction of the Dockerfile with its arguments on one line."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def test_it_is_made_of_known_instructions() -> None:
    assert {name for name, _ in instructions()} == {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert instructions()[0][0] == "FROM"


def test_its_python_is_one_that_the_project_takes() -> None:
    (base,) = of("FROM")
    found = re.fullmatch(r"python:(\d+)\.(\d+)-slim-bookworm", base)
    assert found, base
    wanted = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"])
    assert wanted and tuple(map(int, found.groups())) == tuple(map(int, wanted.groups()))


def test_what_it_copies_exists_and_reaches_the_build() -> None:
    allowed = {line.removeprefix("!") for line in IGNORED if line.startswith("!")}
    assert IGNORED[1] == "*"
    copied: set[str] = set()
    for arguments in of("COPY"):
        *sources, target = shlex.split(arguments)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert (ROOT / source).is_dir() == source.endswith("/"), source
            # A folder's contents are copied, so it must be named again as the target.
            assert target == (source if source.endswith("/") else "./")
            copied.add(source.rstrip("/"))
    assert copied == allowed
    assert {"constraints.txt", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= copied


def test_packages_are_those_of_the_constraints() -> None:
    installs = [part for command in of("RUN") for part in command.split("&&") if "pip install" in part]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in part for part in installs)
    (extra,) = re.findall(r'"\.\[(\w+)\]"', installs[0])
    extras = PROJECT["optional-dependencies"]
    # What the extra names itself is pinned; what it includes are the extras that the tests run with.
    pinned = {re.split(r"[\[<>=]", need)[0] for need in extras[extra]} - {PROJECT["name"]}
    assert pinned and pinned <= CONSTRAINTS.keys()
    assert "drl_dist[all]" in extras[extra]


def test_code_comes_after_dependencies_and_is_all_that_the_project_is_made_of() -> None:
    order = [rest for name, rest in instructions() if name in ("COPY", "RUN")]
    first_install = next(number for number, rest in enumerate(order) if "pip install" in rest)
    code = {rest.split("/")[0] for rest in order[first_install:] if rest.endswith("/")}
    assert code == {"drl_dist", "datasets_prep", "jobs"}
    assert "pip install" in order[-1] and "--no-deps" in order[-1]


def test_it_runs_as_a_user_without_privileges() -> None:
    (user,) = of("USER")
    (made,) = [command for command in of("RUN") if "useradd" in command]
    assert made.split()[-1] == user != "root" and f"--uid {USER_ID}" in made
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]


def test_it_holds_what_its_callers_run() -> None:
    (packages,) = [command for command in of("RUN") if "apt-get install" in command]
    # torch.compile; Ray's cluster launcher on the head; the probes that KubeRay adds.
    assert {"g++", "openssh-client", "rsync", "wget"} <= set(packages.split())
    assert PurePosixPath(of("WORKDIR")[0]) == PurePosixPath("/opt/drl_dist")


def test_the_mlflow_machine_runs_it_behind_passwords() -> None:
    script = CLUSTER / "mlflow_vm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text and "mlflow server --app-name basic-auth" in text
    assert "--secret=" in text and "umask 077" in text
    (image,) = re.findall(r"^image=(\S+)$", text, re.MULTILINE)
    assert IMAGE.fullmatch(image)
