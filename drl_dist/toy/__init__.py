"""The paper's two-dimensional studies (Figures 2 and 3): data with a known density at every noise level, with which
learned densities are compared."""

from __future__ import annotations

import sys

from drl_dist.common.program import interrupt_quietly

# As the interpreter has it while it looks for the module of ``python -m``, of which this is a part.
if sys.argv[:1] == ["-m"]:
    interrupt_quietly()
