#!/usr/bin/env bash
# Ray 2.60.0: `ray job submit`, waiting for its job, exits with 0 when the job is stopped, and the job's own exit status is
# not stored anywhere.
#
# Expected: a status other than 0, as after any unsuccessful end; `driver_exit_code` holds the program's own status, 75
# here.
# What happens: status 0, so that `ray job submit … && next` runs `next`; the job is STOPPED with `driver_exit_code` null,
# although its program has handled SIGTERM and exited on its own. If the same program exits with 75 without being stopped,
# the job is FAILED with `driver_exit_code` 75, and `ray job submit` exits with 1.
#
# Seen:
#   ends with 75 unasked:      ray job submit exits 1, FAILED, driver_exit_code 75
#   ends with 75 when stopped: ray job submit exits 0, STOPPED, driver_exit_code None
set -euo pipefail
# A short folder: Ray's sockets have names of at most 107 bytes.
folder=$(mktemp -d /tmp/XXXXXX)
ray="$folder/env/bin/ray"
head=
# The head ends its own processes when it gets a signal; `ray stop` would end those of other clusters, too.
trap 'test -z "$head" || { kill "$head" 2>/dev/null || tail -n 1 "$folder/start.log" >&2; wait "$head" || true; }; rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'ray[default]==2.60.0'
export RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$("$folder/env/bin/python" -c 'import secrets; print(secrets.token_hex(32))')
"$ray" start --head --block --num-cpus=1 --temp-dir="$folder/ray" --node-ip-address=127.0.0.1 --port=26379 \
  --dashboard-host=127.0.0.1 --dashboard-port=28265 --ray-client-server-port=30001 --disable-usage-stats >"$folder/start.log" 2>&1 &
head=$!
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:28265
"$folder/env/bin/python" - "$ray" <<'PYTHON'
import subprocess
import sys
import time

from ray.job_submission import JobSubmissionClient

ray = sys.argv[1]
deadline = time.monotonic() + 240
while True:
    try:
        client = JobSubmissionClient()
        break
    except (ConnectionError, RuntimeError):  # the head is starting
        assert time.monotonic() < deadline
        time.sleep(1)
# It ends within a moment, well before Ray kills the job after three seconds.
handler = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', flush=True); time.sleep(300)"


def submit(name: str, program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [ray, "job", "submit", "--submission-id", name, "--", sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def outcome(name: str, status: int) -> tuple[int, str, object]:
    job = client.get_job_info(name)
    return status, job.status.value, job.driver_exit_code


unasked = outcome("unasked", submit("unasked", "import sys; sys.exit(75)").wait())
waiting = submit("stopped", handler)
while True:
    try:
        if "ready" in client.get_job_logs("stopped"):
            break
    except RuntimeError:
        pass  # not submitted yet
    assert time.monotonic() < deadline
    time.sleep(0.5)
client.stop_job("stopped")
stopped = outcome("stopped", waiting.wait())
for what, (status, state, code) in (("ends with 75 unasked:     ", unasked), ("ends with 75 when stopped:", stopped)):
    print(f"{what} ray job submit exits {status}, {state}, driver_exit_code {code}")
sys.exit(0 if (unasked, stopped) == ((1, "FAILED", 75), (0, "STOPPED", None)) else 1)
PYTHON
