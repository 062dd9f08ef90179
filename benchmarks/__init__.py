"""Benchmarks and measurements, run from a checkout."""

from __future__ import annotations

import sys

from drl_dist.common.program import interrupt_quietly

# As the interpreter has it while it looks for the module of ``python -m``, of which this is a part.
if sys.argv[:1] == ["-m"]:
    interrupt_quietly()
