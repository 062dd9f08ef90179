"""Servers on 127.0.0.1 for the demonstration and the tests: a Ray head and an MLflow server.

They are started as child processes on free ports and stopped by process id, so that several can run on one machine.
"""

from drl_dist.localhost.jobs import submit_job
from drl_dist.localhost.mlflow_server import MlflowServer
from drl_dist.localhost.ray_head import RayHead
from drl_dist.localhost.server import LocalServer, StartError, end_on_signals, free_ports

__all__ = ["LocalServer", "MlflowServer", "RayHead", "StartError", "end_on_signals", "free_ports", "submit_job"]
