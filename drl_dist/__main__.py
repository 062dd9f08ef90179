"""``python -m drl_dist --help``."""

from __future__ import annotations

from drl_dist.console.command import main

if __name__ == "__main__":
    main()
