"""Records what Ray shows Prometheus of runs that restart, hang, have no workers, end and are killed.

``python -m tests.cluster.record_series`` trains for about five minutes on a Ray head and an MLflow server of its own,
and writes the fixture of the tests of cluster/monitoring/alerts.yaml. Times in it are relative to the start, and ids
are replaced by neutral words.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from drl_dist.localhost import MlflowServer, RayHead
from tests.jobs.training_jobs import words, workers
from tests.support import ROOT, subprocess_environment, wait_for

SERIES = ROOT / "tests" / "cluster" / "series.json"
SECONDS = 5.0
"""Between two looks."""
LINE = re.compile(r"ray_(drl_\w+)\{(.*)\} (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
NEUTRAL = {"NodeAddress": "node", "SessionName": "session", "WorkerId": "worker"}
"""Labels whose values tell of a machine, and what is put in their place."""


@dataclass
class Recorder:
    """Looks at an endpoint every few seconds, in a thread."""

    address: str
    began: float = field(default_factory=time.time)
    looks: list[float] = field(default_factory=list)
    events: dict[str, float] = field(default_factory=dict)
    series: dict[tuple[str, tuple[tuple[str, str], ...]], dict[int, float]] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    _neutral: dict[tuple[str, str], str] = field(default_factory=dict)

    def run(self) -> None:
        """Look until `ended`."""
        while not self.ended.wait(max(0.0, self.began + len(self.looks) * SECONDS - time.time())):
            number = len(self.looks)
            self.looks.append(round(time.time() - self.began, 1))
            with urllib.request.urlopen(self.address, timeout=30) as answer:
                text = answer.read().decode()
            for name, labels, value in LINE.findall(text):
                key = name, tuple((label, self._word(label, word)) for label, word in LABEL.findall(labels))
                number_told = float(value) - (self.began if "timestamp" in name else 0)
                self.series.setdefault(key, {})[number] = float(f"{number_told:.6g}")

    def note(self, event: str) -> None:
        """Something happens now."""
        self.events[event] = round(time.time() - self.began, 1)
        print(f"{self.events[event]:6.1f} s: {event}", flush=True)

    def shows(self, name: str, run: str, since: float = 0) -> bool:
        """Whether a series of a run began after a time."""
        return any(
            name == known and ("run", run) in labels and self.looks[min(values)] >= since
            for (known, labels), values in list(self.series.items())
        )

    def written(self) -> str:
        """The fixture: one series a line."""
        lines = [
            json.dumps(
                {
                    "name": name,
                    "labels": dict(labels),
                    "values": [values.get(number) for number in range(len(self.looks))],
                }
            )
            for (name, labels), values in sorted(self.series.items())
        ]
        head = json.dumps({"seconds": SECONDS, "events": self.events})[:-1]
        return head + ', "series": [\n' + ",\n".join(lines) + "\n]}\n"

    def _word(self, label: str, value: str) -> str:
        if label not in NEUTRAL:
            return value
        known = sum(1 for other, _ in self._neutral if other == label)
        return self._neutral.setdefault((label, value), f"{NEUTRAL[label]}-{known + 1}")


def record(recorder: Recorder, head: RayHead, train: Callable[[str], subprocess.Popen[bytes]]) -> None:
    """Let happen to runs what is to be recorded."""

    def until_steps_after(event: str, run: str) -> None:
        wait_for(lambda: recorder.shows("drl_step", run, recorder.events[event]))
        time.sleep(25)

    recorder.note("started")
    with train("church") as job:
        until_steps_after("started", "church")
        victim = max(workers(head))
        recorder.note("worker killed")
        os.kill(victim, signal.SIGKILL)
        until_steps_after("worker killed", "church")
        # The other rank waits for it in a collective call.
        first, second = sorted(workers(head))
        recorder.note("worker stopped")
        os.kill(second, signal.SIGSTOP)
        time.sleep(50)
        recorder.note("both stopped")
        os.kill(first, signal.SIGSTOP)
        time.sleep(40)
        recorder.note("both killed")
        os.kill(first, signal.SIGKILL)
        os.kill(second, signal.SIGKILL)
        until_steps_after("both killed", "church")
        recorder.note("run asked to stop")
        job.send_signal(signal.SIGTERM)
        assert job.wait(120) == 75
        recorder.note("run ended")
    recorder.note("second run started")
    with train("bedroom") as job:
        until_steps_after("second run started", "bedroom")
        recorder.note("driver killed")
        job.kill()
        time.sleep(40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SERIES, help="file to write")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder, RayHead() as head, MlflowServer(Path(folder) / "mlflow") as mlflow:
        environment = subprocess_environment(head.environment(), mlflow.environment())
        data, storage = Path(folder) / "data", Path(folder) / "runs"
        prepare = [sys.executable, "-m", "datasets_prep.digits", "--out", str(data), "--workers", "1"]
        subprocess.run(prepare, env=environment, check=True)

        def train(name: str) -> subprocess.Popen[bytes]:
            options = words(data, storage, name, "--num-workers=2", "--train.num-steps=1000000")
            options += ["--checkpoint.every-steps=300", "--tracking.sample-every-steps=100000"]
            return subprocess.Popen([sys.executable, str(ROOT / "jobs" / "train_digits.py"), *options], env=environment)

        recorder = Recorder(head.metrics_address)
        thread = threading.Thread(target=recorder.run, daemon=True)
        thread.start()
        record(recorder, head, train)
        recorder.ended.set()
        thread.join(60)
        out.write_text(recorder.written())
    print(f"{len(recorder.series)} series of {len(recorder.looks)} looks in {out}")


if __name__ == "__main__":
    main()
