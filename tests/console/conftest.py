from __future__ import annotations

from tests.gcs import gcs_bucket, gcs_emulator

__all__ = ["gcs_bucket", "gcs_emulator"]
