"""Tracking with MLflow: runs, metrics, pictures and model versions. The only package that imports mlflow."""

from __future__ import annotations

import os

from drl_dist.common.proxies import spare_loopback

# By default a request to a server that went away is repeated for minutes. Ours are repeated by the spool, or fail; what
# the user sets counts. mlflow reads these when it is imported or at each request.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
spare_loopback(os.environ)
