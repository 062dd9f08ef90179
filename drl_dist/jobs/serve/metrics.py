"""What a replica exports for Prometheus."""

from __future__ import annotations

import threading
from typing import Literal

from ray.serve import metrics

from drl_dist.jobs.serve.host import ModelHost

EXPORT_SECONDS = 5.0
_SECONDS = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]
Outcome = Literal["done", "left", "refused", "failed"]


class ReplicaMetrics:
    """Ray puts ``ray_`` before the names, and the deployment and the replica into tags.

    Args:
        host: that it looks at every few seconds, until the process ends.
    """

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._visits = metrics.Counter("drl_serve_visits", "images that visitors asked for", tag_keys=("outcome",))
        self._seconds = metrics.Histogram("drl_serve_image_seconds", "from a request to its image", _SECONDS)
        self._active = metrics.Gauge("drl_serve_active", "requests in the batch")
        self._waiting = metrics.Gauge("drl_serve_waiting", "requests that wait for room")
        self._batch = metrics.Gauge("drl_serve_images_per_call", "images in a call of the network, in the last seconds")
        self._before = (0, 0)
        self._closed = threading.Event()
        threading.Thread(target=self._export, daemon=True, name="serving metrics").start()

    def ended(self, outcome: Outcome, seconds: float) -> None:
        """Count a visit."""
        self._visits.inc(1, {"outcome": outcome})
        if outcome == "done":
            self._seconds.observe(seconds)

    def close(self) -> None:
        """Export no more."""
        self._closed.set()

    def _export(self) -> None:
        while not self._closed.wait(EXPORT_SECONDS):
            engine = self._host.engine
            self._active.set(engine.num_active)
            self._waiting.set(engine.num_waiting)
            calls, images = engine.num_calls, engine.num_images
            new_calls = calls - self._before[0]
            self._batch.set((images - self._before[1]) / new_calls if new_calls else 0.0)
            self._before = (calls, images)
