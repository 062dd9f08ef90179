"""The Python of the documentation: it compiles, imports what is there, and does what its page says."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from drl_dist.data.filesystem import Folder
from drl_dist.localhost import RayHead, submit_job
from drl_dist.tracking.files.table import MetricsTable
from tests.documents.pages import blocks, pages
from tests.support import subprocess_environment, wait_for

PAGES = pages()
PYTHON = [
    (page, line, body) for page, text in PAGES.items() for line, language, body in blocks(text) if language == "python"
]
EXECUTED = {
    **{"README.md": 1, "docs/data.md": 1, "docs/library.md": 3, "docs/tracking.md": 1, "docs/training.md": 2},
    **{"docs/serving.md": 1, "docs/tutorial.md": 1},
}
"""Blocks of each page that a test runs: here, in tests/test_readme.py, in tests/library/test_page.py, in
tests/method/test_torch_alone.py, tests/serving/test_page.py, and in tests/documents/test_tutorial.py."""


def test_each_block_is_run_by_a_test() -> None:
    assert {page: sum(page == other for other, _, _ in PYTHON) for page, _, _ in PYTHON} == EXECUTED


@pytest.mark.parametrize(("page", "line", "body"), PYTHON)
def test_what_it_imports_is_there(page: str, line: int, body: str) -> None:
    tree = ast.parse(body, f"{page}:{line}")
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), page, "exec"), {})


@pytest.mark.slow
def test_any_webdataset_reader_opens_a_shard(digits: Path, tmp_path: Path) -> None:
    # The folder that tests share has blanks, colons and brackets in its name. Those are webdataset's own notation for
    # several shards, and its reader, not ours, is at work here: give it the same folder under a plain name.
    plain = tmp_path / "digits"
    plain.symlink_to(digits)
    ((_, _, body),) = [block for block in PYTHON if block[0] == "docs/data.md"]
    shards = sorted(name for name in Folder(str(plain)).sizes() if name.endswith(".tar"))
    documented = "gs://bucket/cifar10/cifar10-train-{00000..00024}.tar"
    assert documented in body
    last = shards[-1].removeprefix("digits-train-").removesuffix(".tar")
    names: dict[str, object] = {}
    exec(body.replace(documented, f"{plain}/digits-train-{{00000..{last}}}.tar"), names)
    first, *rest = list(names["samples"])  # type: ignore[call-overload]
    assert len(rest) == 1796
    assert first["png"].size == (8, 8) and first["json"]["source"] == "digits/0" and first["__key__"] == "000000000"


def test_pandas_reads_the_metrics_of_a_run_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (body,) = [body for page, _, body in PYTHON if page == "docs/tracking.md"]
    monkeypatch.chdir(tmp_path)
    metrics = MetricsTable(str(tmp_path / "runs/second"), 0)
    metrics.log(1, {"loss": 2.0, "grad_norm": 0.5})
    metrics.log(2, {"loss": 1.0, "grad_norm": 0.25})
    metrics.write(is_sealed=True)
    names: dict[str, Any] = {}
    exec(body, names)
    assert names["curves"]["loss"].to_dict() == {1: 2.0, 2: 1.0}


JOB = """
import signal, sys, time
def stop(*_):
    time.sleep(4)
    print("left by itself", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(300)
"""
"""As ours do: it answers SIGTERM, later than after Ray's own three seconds, and with 75."""


@pytest.mark.integration
def test_a_script_learns_how_a_job_ended(ray_head: RayHead, tmp_path: Path) -> None:
    (body,) = [body for page, _, body in PYTHON if page == "docs/training.md" and "JobSubmissionClient" in body]
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "wrong.py").write_text("import sys; sys.exit(2)")
    statuses: dict[str, int] = {}
    lines: list[str] = []

    def submit(name: str, script: str, **variables: str) -> None:
        statuses[name] = submit_job(
            ray_head,
            ["python", script],
            working_dir=tmp_path,
            submission_id=name,
            environment=variables,
            echo=lambda line: lines.append(f"{name}: {line}"),
            timeout_seconds=120,
        )

    def stop(name: str, **variables: str) -> None:
        job = threading.Thread(target=submit, args=(name, "job.py"), kwargs=variables)
        job.start()
        wait_for(lambda: f"{name}: ready" in lines or not job.is_alive())
        ask(f"{name}/stop", "POST")
        job.join()

    def ask(what: str, method: str = "GET") -> dict[str, object]:
        request = urllib.request.Request(
            f"{ray_head.address}/api/jobs/{what}",
            headers={"Authorization": f"Bearer {ray_head.environment()['RAY_AUTH_TOKEN']}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def own_status(name: str) -> int:
        # In a process of its own: Ray reads how to show its token once.
        done = subprocess.run(
            [sys.executable, "-c", body, name],
            env=subprocess_environment(ray_head.environment()),
            stderr=subprocess.PIPE,
            check=False,
        )
        assert b"Traceback" not in done.stderr, done.stderr
        return done.returncode

    with ThreadPoolExecutor(3) as threads:
        jobs = [
            threads.submit(submit, "ended-with-2", "wrong.py"),
            threads.submit(stop, "stopped"),
            threads.submit(stop, "stopped-at-once", RAY_JOB_STOP_WAIT_TIME_S="3"),
        ]
        for job in jobs:
            job.result()
    # The table of the page.
    assert statuses == {"ended-with-2": 1, "stopped": 0, "stopped-at-once": 0}
    told = {name: (ask(name)["status"], ask(name)["driver_exit_code"]) for name in statuses}
    assert told == {
        "ended-with-2": ("FAILED", 2),
        "stopped": ("STOPPED", None),
        "stopped-at-once": ("STOPPED", None),
    }
    with ThreadPoolExecutor(3) as threads:
        own = dict(zip(statuses, threads.map(own_status, statuses), strict=True))
    assert own == {"ended-with-2": 2, "stopped": 75, "stopped-at-once": 75}
    # Three seconds are too few for what answers after four.
    assert "stopped: left by itself" in lines and "stopped-at-once: left by itself" not in lines
