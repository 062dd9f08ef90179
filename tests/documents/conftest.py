"""Shards of the digits."""

from tests.jobs.conftest import digits

__all__ = ["digits"]
