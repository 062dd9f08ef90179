"""Hours of a run's life as Prometheus sees them, made of what was recorded of some minutes (`record_series`).

A story is a list of parts. A part plays recorded looks one to one, from one event to another; if it is to last longer,
the last look stays: series that were there stay there, timestamps that were growing grow on, and all other values stay.
Where a part is played again, its workers get ids of their own, as those of each restart have.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.record_series import SERIES
from tests.support import ROOT, require

RECORDED: dict[str, Any] = json.loads(SERIES.read_text())
LOOK: float = RECORDED["seconds"]
SCRAPE = 15
"""Seconds between scrapes, as in cluster/monitoring/prometheus.yaml; of the recorded looks every third."""
ALERTS = ROOT / "cluster" / "monitoring" / "alerts.yaml"
Firing = set[tuple[str, str]]
"""Alerts, and the runs that they are about."""


@dataclass(frozen=True)
class Part:
    """Something that happens.

    Args:
        since: the recorded event that it begins with, and seconds after that.
        until: the one that it ends with.
        minutes: how long it lasts; None as long as was recorded.
        values: numbers put in the place of recorded ones, by names without `drl_`.
        frozen: timestamps that stay as they are at the story's beginning, whichever process tells them.
    """

    since: tuple[str, float]
    until: tuple[str, float]
    minutes: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    frozen: Collection[str] = ()


def _at(event: tuple[str, float]) -> int:
    return round((RECORDED["events"][event[0]] + event[1]) / LOOK)


Key = tuple[str, tuple[tuple[str, str], ...]]


OF_JOBS = {
    one["labels"]["WorkerId"] for one in RECORDED["series"] if one["name"] == "drl_started_timestamp_seconds"
} | {
    one["labels"]["WorkerId"]
    for one in RECORDED["series"]
    # Ray's controller tells of checkpoints alone.
    if one["name"] == "drl_checkpoint_timestamp_seconds"
    and not any(
        other["name"] == "drl_workers" and other["labels"]["WorkerId"] == one["labels"]["WorkerId"]
        for other in RECORDED["series"]
    )
}
"""Processes that live as long as their job, whatever its workers do."""
EXPRESSION = 'count by (alertname, run) (ALERTS{alertstate="firing"})'


class Story:
    """Series of one run.

    Args:
        parts: one after another.
        run: its name.
        of: the name that the run had when it was recorded.
        quiet_minutes: nothing is seen before and after.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        run: str = "church",
        of: str = "church",
        quiet_minutes: tuple[float, float] = (0, 0),
    ) -> None:
        self.run = run
        self.series: dict[Key, dict[int, float]] = {}
        self._first: dict[Key, float] = {}
        self.end = round(quiet_minutes[0] * 60 / SCRAPE)
        self._of = of
        for number, part in enumerate(parts):
            self._play(part, number)
        self.end += round(quiet_minutes[1] * 60 / SCRAPE)

    def _play(self, part: Part, number: int) -> None:
        begin, stop = _at(part.since), _at(part.until)
        seconds = (stop - begin) * LOOK if part.minutes is None else part.minutes * 60
        for one in RECORDED["series"]:
            if one["labels"]["run"] != self._of:
                continue
            values, name = one["values"], one["name"]
            labels = dict(one["labels"]) | {"run": self.run}
            if labels["WorkerId"] not in OF_JOBS:
                labels["WorkerId"] += f"-{number}"
            labels["SessionName"] += f"-{self.run}"
            key = name, tuple(sorted(labels.items()))
            for scrape in range(round(seconds / SCRAPE)):
                played = begin + round(scrape * SCRAPE / LOOK)
                look = min(played, stop - 1)
                if values[look] is None:
                    continue
                value = part.values.get(name.removeprefix("drl_"), values[look])
                if "timestamp" in name:
                    value = self._moved(key, part, values, look, scrape, begin, played)
                self.series.setdefault(key, {})[self.end + scrape] = value
        self.end += round(seconds / SCRAPE)

    def _moved(
        self, key: Key, part: Part, values: list[float], look: int, scrape: int, begin: int, played: int
    ) -> float:
        """A recorded timestamp in the story's time."""
        # Ray exports every ten seconds.
        before, now = values[look - 3], values[look]
        grown = max(0, played - look) * LOOK if before is not None and now > before else 0.0
        told = max(0.0, now + self.end * SCRAPE - begin * LOOK + grown)
        # Of a process that lives as long as its job, and says when something was before all parts.
        if dict(key[1])["WorkerId"] in OF_JOBS and len(set(values) - {None}) == 1:
            told = self._first.setdefault(key, told)
        first = self._first.setdefault((key[0], ()), told)
        return first if key[0].removeprefix("drl_") in part.frozen else told

    def written(self) -> list[dict[str, str]]:
        """As `promtool test rules` takes it; a series that goes is marked stale, as Prometheus does."""
        found: list[dict[str, str]] = []
        for (name, labels), values in self.series.items():
            told = ",".join(f'{label}="{word}"' for label, word in labels)
            samples: list[str] = []
            awaited = 0
            for scrape, value in sorted(values.items()):
                missing = scrape - awaited
                if missing and samples:
                    samples.append("stale")
                    missing -= 1
                if missing:
                    samples.append(f"_x{missing}")
                samples.append(f"{value:.12g}")
                awaited = scrape + 1
            if awaited < self.end:
                samples.append("stale")
            found.append({"series": f"ray_{name}{{{told}}}", "values": " ".join(samples)})
        return found


def firing(folder: Path, stories: Sequence[Story], minutes: Sequence[float]) -> dict[float, Firing]:
    """Which alerts fire at which minutes, by Prometheus itself."""
    promtool = require("prometheus")
    test = folder / "test.yaml"
    rules = folder / "alerts.yaml"
    rules.write_text(ALERTS.read_text())
    asked = [
        {
            "expr": EXPRESSION,
            "eval_time": f"{round(minute * 60)}s",
            "exp_samples": [{"labels": '{none="1"}', "value": 1}],
        }
        for minute in minutes
    ]
    series = [one for story in stories for one in story.written()]
    tests = [{"interval": f"{SCRAPE}s", "input_series": series, "promql_expr_test": asked}]
    content = {"rule_files": [rules.name], "evaluation_interval": f"{SCRAPE}s", "tests": tests}
    # JSON is YAML, too, and is written in a hundredth of the time.
    test.write_text(json.dumps(content))
    done = subprocess.run(
        [promtool, "test", "rules", test],
        # More would collect garbage all the time, on cores that other tests need.
        env=os.environ | {"GOMAXPROCS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # What was asked for is never there, so that promtool tells what is.
    answers = re.split(r"expr: ", done.stdout + done.stderr)[1:]
    assert len(answers) == len(minutes), done.stdout + done.stderr
    found: dict[float, Firing] = {}
    for answer in answers:
        (seconds,) = re.findall(r"time: ([0-9hms]+)", answer)
        got = answer.split("got:", 1)[1]
        found[_minutes(seconds)] = set(re.findall(r'alertname="(\w+)", run="([^"]+)"', got))
    return found


def _minutes(duration: str) -> float:
    units = {"h": 60, "m": 1, "s": 1 / 60}
    return round(sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)), 3)
