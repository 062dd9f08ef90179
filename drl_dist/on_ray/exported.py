"""Numbers that jobs export through Ray's metrics, which Prometheus scrapes from every node."""

from __future__ import annotations

from ray.util.metrics import Gauge

EXPORTED: dict[str, str] = {
    "drl_step": "training steps made",
    "drl_images_per_second": "images trained on per second, over all workers, since the last look",
    "drl_step_seconds": "mean duration of a step since the last look, the waiting for data included",
    "drl_data_wait_fraction": "share of the time since the last look that steps of the first worker waited for data",
    "drl_loss": "weighted loss of the objective",
    "drl_grad_norm": "norm of the gradient before clipping",
    "drl_goodput": "time that the steps made since the job's start take undisturbed, over the time since its start",
    "drl_checkpoint_timestamp_seconds": "when the newest checkpoint was complete in storage, in seconds since 1970",
    "drl_checkpoint_stall_fraction": "share of the time since the last restart that training waited for checkpoints",
    "drl_bad_samples": "damaged samples that others stood in for since the start of the run, over all workers",
    "drl_spool_unsent_bytes": "bytes that MLflow is still to be told",
    "drl_sampled_images": "images that a sampling job has made",
    "drl_sampling_images_per_second": "images that a sampling job makes per second",
}
"""Name and meaning; Ray puts `ray_` before the name. All are gauges with the tag `run`."""


class Exporter:
    """Sets the numbers of one run or job.

    Args:
        run: value of the tag `run`: the run's name, or the URL of the samples.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, **values: float) -> None:
        """Export numbers by their names in `EXPORTED`, without `drl_`."""
        for name, value in values.items():
            full = f"drl_{name}"
            if full not in self._gauges:
                self._gauges[full] = Gauge(full, EXPORTED[full], tag_keys=("run",))
            self._gauges[full].set(value, tags={"run": self._run})
