"""``python -m benchmarks.accelerator``: on a CPU everything that it does on a GPU, in tiny sizes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.accelerator.__main__ import main
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.record import read
from drl_dist.common.errors import UserError
from drl_dist.common.program import EXIT_INTERRUPTED
from tests.helpers.forked import real_python
from tests.support import ROOT, subprocess_environment, wait_for

_ALONE = """
import sys, time
for name in ("ray", "mlflow", "fsspec", "pyarrow", "pydantic", "tyro", "rich", "PIL", "matplotlib", "webdataset",
             "safetensors", "timm", "torchvision"):
    sys.modules[name] = None
from benchmarks.accelerator import worker, report
from pathlib import Path
status = worker.main(["--out", sys.argv[1], "--device", "cpu", "--parts", sys.argv[2],
                      "--until", str(time.monotonic() + 1500)])
report.write_report(Path(sys.argv[1]))
sys.exit(status)
"""
_INTERRUPTED = """
import sys, time
from pathlib import Path
from benchmarks.accelerator import __main__, supervisor
from drl_dist.common.program import entry_point
supervisor.WORKER = [sys.executable, sys.argv[2]]
folder = Path(sys.argv[1])
end = supervisor._end
def slow_end(process):
    (folder / "ending").touch()
    time.sleep(2)
    end(process)
supervisor._end = slow_end
entry_point(lambda: __main__.main(["--device", "cpu", "--out", str(folder)]))
"""
_HANGING = """
import os, sys, time
from pathlib import Path
from benchmarks.accelerator.record import append
out = Path(sys.argv[2])
(out / "worker.pid").write_text(str(os.getpid()))
append(out, "machine", "begin", until=time.monotonic() + 100)
append(out, "machine", "row", what="libraries", torch="of a test")
(out / "began").touch()
time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "option --minutes: got 0.0, expected 0.5 to 600"),
        (["--minutes", "nan"], "option --minutes: got nan"),
        (["--device", "tpu"], "option --device: got tpu, expected cuda or cpu"),
        (["--parts", "machine,rates"], "option --parts: got machine,rates, expected some of machine, equality"),
        (["--parts", "machine,machine"], "option --parts: got machine,machine"),
        (["--parts", ","], "option --parts: got ,"),
    ],
)
def test_options_are_refused_before_anything_is_written(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        main(["--device", "cpu", "--out", str(tmp_path / "new"), *words])
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device: got cuda, with a torch .* try the command with --device cpu"):
        main(["--out", str(tmp_path / "new")])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(UserError, match="with something else, expected a new or an empty folder; choose another"):
        main(["--device", "cpu", "--out", str(tmp_path)])
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(UserError, match="with a run of before"):
        main(["--device", "cpu", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="option --out: got"):
        main(["--device", "cpu", "--out", "gs://bucket/run"])
    assert (tmp_path / "report.md").read_text() == "mine"


@pytest.mark.integration
def test_a_command_that_is_told_twice_to_end_writes_its_report(tmp_path: Path) -> None:
    # As by timeout, which tells the whole group, and by make, which tells its children once more.
    worker, out = tmp_path / "hanging.py", tmp_path / "run"
    worker.write_text(_HANGING)
    command = [real_python(), "-c", _INTERRUPTED, str(out), str(worker)]
    running = subprocess.Popen(command, cwd=ROOT, env=subprocess_environment())
    for name in ("began", "ending"):
        wait_for((out / name).exists)
        running.send_signal(signal.SIGTERM)
    assert running.wait(60) == EXIT_INTERRUPTED
    with pytest.raises(ProcessLookupError):
        os.kill(int((out / "worker.pid").read_text()), signal.SIGTERM)
    assert "torch of a test" in (out / "report.md").read_text()
    assert json.loads((out / "report.json").read_text())["parts"]["machine"]["status"] == "cut short"


@pytest.mark.integration
def test_a_whole_run_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [real_python(), "-m", "benchmarks.accelerator", "--device", "cpu", "--minutes", "20", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=subprocess_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = read(out)
    assert {name: (part.status, part.message) for name, part in found.items()} == dict.fromkeys(PARTS, ("done", ""))
    assert not [row for part in found.values() for row in part.rows if "failed" in row]
    compared = [row for row in found["equality"].rows if "passed" in row]
    assert len(compared) == 24 and all(row["passed"] for row in compared)
    # What only a GPU has is not pretended.
    for name in ("equality", "throughput", "gaps"):
        skipped = [row for row in found[name].rows if row.get("skipped") == "needs CUDA"]
        assert skipped and not [row for row in skipped if "seconds" in row or "error" in row]
    assert not [row for row in found["throughput"].rows if row.get("way") != "eager" and "seconds" in row]
    assert [row["steps"] > 0 and row["waiting_share"] >= 0 for row in found["pipeline"].rows[2:]] == [True] * 3
    assert not (out / "shards").exists() and not (out / "cache").exists()
    losses = [row["loss"] for row in found["training"].rows if row["what"] == "step"]
    assert len(losses) == 10
    made = {path.name for path in out.iterdir()}
    assert made >= {"report.md", "report.json", "curve.png", "samples.png", "trace-digits-t6-eager.json.gz"}
    assert "skipped: needs CUDA" in (out / "report.md").read_text()
    assert set(json.loads((out / "report.json").read_text())["parts"]) == set(PARTS)
    assert "s left]" in done.stdout and str(out / "report.md") in done.stdout.splitlines()[-1]


@pytest.mark.integration
def test_torch_and_numpy_are_enough_to_train_and_measure(tmp_path: Path) -> None:
    parts = "machine,throughput,memory,gaps,pipeline,training"
    done = subprocess.run(
        [real_python(), "-c", _ALONE, str(tmp_path), parts],
        cwd=ROOT,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = read(tmp_path)
    assert found.pop("pipeline").status == "skipped" and {part.status for part in found.values()} == {"done"}
    text = (tmp_path / "report.md").read_text()
    assert "| Data pipeline | skipped: no package " in text and "no picture: no package matplotlib" in text
    assert (tmp_path / "samples.npy").is_file()
