"""Durations as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as ``3 h 05 min``, ``12 min`` or ``40 s``."""
    minutes = round(seconds / 60)
    if seconds >= 3600:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 120 else f"{seconds:.0f} s"
