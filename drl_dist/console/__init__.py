"""``python -m drl_dist``: servers on this machine, and what runs are doing."""
