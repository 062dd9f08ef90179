#!/usr/bin/env bash
# MLflow 3.17.2: of two values of a metric with the same step and timestamp, the *largest* is the latest.
#
# Expected: the value logged last counts, so that logging a value again corrects it; or the second row is refused.
# What happens: both rows are kept, and `run.data.metrics` (what the page shows) is their maximum, whichever came last. A
# value that is logged again for the same step and time (resent after a lost answer, or computed again with a different
# last digit) can only raise the metric, never lower it.
#
# Seen:
#   logged one after the other, same step and time: [2.0, 1.0, 3.0]
#   latest after each: [2.0, 2.0, 3.0]
#   history: [1.0, 2.0, 3.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet mlflow==3.17.2 mlflow-skinny==3.17.2 mlflow-tracing==3.17.2
cd "$folder"
MLFLOW_DISABLE_TELEMETRY=true "$folder/env/bin/python" - <<'PYTHON'
import sys

from mlflow import MlflowClient

client = MlflowClient("sqlite:///mlflow.db")
run = client.create_run(client.create_experiment("findings")).info.run_id
latest = []
for value in (2.0, 1.0, 3.0):
    client.log_metric(run, "score", value, timestamp=1_700_000_000_000, step=10)
    latest.append(client.get_run(run).data.metrics["score"])
history = [metric.value for metric in client.get_metric_history(run, "score")]
print("logged one after the other, same step and time: [2.0, 1.0, 3.0]")
print("latest after each:", latest)
print("history:", sorted(history))
sys.exit(0 if latest == [2.0, 2.0, 3.0] and sorted(history) == [1.0, 2.0, 3.0] else 1)
PYTHON
