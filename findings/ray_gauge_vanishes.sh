#!/usr/bin/env bash
# Ray 2.60.0: a gauge disappears from what Prometheus reads about 20 seconds after it was last set, although its actor lives.
#
# Expected: a gauge keeps its last value for as long as the process that set it lives.
# What happens: it is exported until about two export intervals (10 s each) after the last `set`, then its series ends. A
# counter of the same actor stays. An alert on an old value, such as the age of the last checkpoint or a rate of 0, cannot
# fire when the loop that sets the gauge hangs, because there is no value to compare.
#
# Seen:
#   my_gauge: exported from 10 s to 29 s after it was set
#   my_counter: exported from 10 s to 60 s after it was set
#   actor alive after 60 s: True
set -euo pipefail
# A short folder: Ray's sockets have names of at most 107 bytes.
folder=$(mktemp -d /tmp/XXXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'ray[default]==2.60.0'
export RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
"$folder/env/bin/python" - "$folder/ray" 2>"$folder/log" <<'PYTHON'
import sys
import time
import urllib.request

import ray
from ray.util.metrics import Counter, Gauge

PORT = 28080
ray.init(num_cpus=1, _temp_dir=sys.argv[1], _metrics_export_port=PORT, include_dashboard=False, log_to_driver=False)


@ray.remote
class Actor:
    def set(self) -> None:
        self.gauge, self.counter = Gauge("my_gauge"), Counter("my_counter")
        self.gauge.set(7)
        self.counter.inc()

    def is_alive(self) -> bool:
        return True


def exported(name: str) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
        return any(line.startswith(f"ray_{name}") for line in answer.read().decode().splitlines())


actor = Actor.remote()
ray.get(actor.set.remote())
began = time.monotonic()
seen: dict[str, list[float]] = {"my_gauge": [], "my_counter": []}
while (now := time.monotonic() - began) < 60:
    for name, times in seen.items():
        if exported(name):
            times.append(now)
    time.sleep(1)
alive = ray.get(actor.is_alive.remote())
for name, times in seen.items():
    print(f"{name}: exported from {times[0]:.0f} s to {times[-1]:.0f} s after it was set" if times else f"{name}: never")
print("actor alive after 60 s:", alive)
gone = bool(seen["my_gauge"]) and seen["my_gauge"][-1] < 45
sys.exit(0 if gone and alive and seen["my_counter"][-1] > 55 else 1)
PYTHON
