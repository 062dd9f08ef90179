"""``python -m drl_dist --help``."""

from __future__ import annotations

from drl_dist.common.program import interrupt_quietly

if __name__ == "__main__":
    # Before what takes longer.
    interrupt_quietly()
    from drl_dist.console.command import main

    main()
