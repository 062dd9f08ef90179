"""The dashboard and the alerts speak of what the jobs export, and what the jobs export reaches Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from drl_dist.jobs.common.prometheus import COUNTED, EXPORTED
from drl_dist.localhost import RayHead
from tests.cluster.facts import CLUSTER, documents
from tests.support import ROOT, subprocess_environment, wait_for

DASHBOARD: dict[str, Any] = json.loads((CLUSTER / "monitoring" / "grafana.json").read_text())
RAY = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "ray"
NAME = re.compile(r"\bray_[a-z0-9_]+")
EXPORT = """
import sys, ray
from drl_dist.jobs.common.prometheus import COUNTED, EXPORTED, Exporter
ray.init()
with Exporter("church-1") as exporter:
    gauges = [name.removeprefix("drl_") for name in EXPORTED if name not in COUNTED]
    exporter.set(**{name: 1.5 + i for i, name in enumerate(gauges)})
    exporter.ask(lambda: {"step": 7})
    print("set", flush=True)
    # Longer than Ray keeps a gauge that is not set.
    sys.stdin.readline()
    exporter.count("ended")
ray.shutdown()
"""


def rules() -> list[dict[str, Any]]:
    (alerts,) = documents(CLUSTER / "monitoring" / "alerts.yaml")
    return [rule for group in alerts["groups"] for rule in group["rules"]]


def named(text: str) -> set[str]:
    """Names of metrics in PromQL, as they are in the code."""
    ours = {name.removeprefix("ray_").removesuffix("_total") for name in NAME.findall(text) if "_drl_" in name}
    assert all(f"ray_{name}_total" in text for name in ours & COUNTED)
    return ours | {name for name in NAME.findall(text) if "_drl_" not in name}


def test_every_panel_shows_what_is_exported() -> None:
    shown: set[str] = set()
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            names = named(target["expr"])
            assert names, panel["title"]
            shown |= names
    ours = {name for name in shown if name.startswith("drl_")}
    asked = {name for rule in rules() for name in named(rule["expr"])}
    assert ours | asked == EXPORTED.keys()
    assert asked - ours == {"drl_started_timestamp_seconds", "drl_ended"}
    # Ray's own, as its own dashboards name them.
    templates = "".join(path.read_text() for path in (RAY / "dashboard" / "modules" / "metrics").rglob("*.py"))
    for name in shown - ours:
        assert name in templates


def test_every_panel_asks_for_a_run_whichever_process_tells_of_it() -> None:
    """Each restart is another process, which would be another line."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            if "ray_drl_" in target["expr"]:
                assert re.match(r"(time\(\) - )?(max|sum) by \(run\) \(", target["expr"]), panel["title"]
                assert target["legendFormat"] == "{{run}}"


def test_panels_have_numbers_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_alerts_are_about_what_is_exported_and_in_the_runbook() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    for rule in rules():
        assert named(rule["expr"]) <= EXPORTED.keys()
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert "{{ $labels.run }}" in rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in runbook


def test_prometheus_reads_the_list_of_nodes_that_ray_keeps() -> None:
    (config,) = documents(CLUSTER / "monitoring" / "prometheus.yaml")
    ((place,),) = (job["file_sd_configs"][0]["files"] for job in config["scrape_configs"])
    constants = (RAY / "_private" / "ray_constants.py").read_text()
    assert f'"{Path(place).name}"' in constants
    assert config["rule_files"] == ["alerts.yaml"]


@pytest.mark.integration
def test_a_job_s_numbers_are_served_for_prometheus(ray_head: RayHead) -> None:
    environment = subprocess_environment(ray_head.environment())
    with subprocess.Popen(
        [sys.executable, "-c", EXPORT], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as job:
        assert job.stdin is not None and job.stdout is not None
        assert job.stdout.readline() == "set\n"
        gauges = [name for name in EXPORTED if name not in COUNTED]
        expected = {name: 1.5 + number for number, name in enumerate(gauges)} | {"drl_step": 7}
        wait_for(lambda: served(ray_head) == expected, 90)
        for _ in range(30):
            time.sleep(1)
            assert served(ray_head) == expected
        job.stdin.write("\n")
        job.stdin.flush()
        assert job.wait(60) == 0
    # Ray has sent the last of it at the process's end; counters stay, gauges do not.
    assert served(ray_head) == expected | {"drl_ended_total": 1}
    wait_for(lambda: served(ray_head) == {"drl_ended_total": 1}, 40)


def served(head: RayHead) -> dict[str, float]:
    """What Prometheus would read of a run's numbers now."""
    with urllib.request.urlopen(head.metrics_address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    ours = [line for line in lines if line.startswith("ray_drl_") and 'run="church-1"' in line]
    return {line[4:].split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in ours}
