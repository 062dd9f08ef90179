from __future__ import annotations

from tests.faulty_proxy import proxy
from tests.gcs import gcs_bucket, gcs_emulator

__all__ = ["gcs_bucket", "gcs_emulator", "proxy"]
