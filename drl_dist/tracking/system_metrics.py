"""Load of the machine that a worker runs on, as MLflow's page shows it under *System metrics*."""

from __future__ import annotations

from importlib.util import find_spec

SYSTEM_SECONDS = 15.0
"""Seconds between two samples."""


class SystemMetrics:
    """MLflow's own monitors of processor, memory, disk, network and, where its library is there, GPU."""

    def __init__(self) -> None:
        # They need psutil, and are imported with MLflow, in the thread that sends.
        self._monitors = []
        if find_spec("psutil") is None:
            return
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        if find_spec("pynvml") is not None:
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            try:
                self._monitors.append(GPUMonitor())
            except RuntimeError:
                # A machine without a GPU, or without its driver.
                return

    def sample(self) -> dict[str, float]:
        """The load now, by names that begin with ``system/``; empty where psutil is not installed."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found
