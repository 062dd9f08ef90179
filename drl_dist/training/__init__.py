"""The training of one process: its state, its step, its loop."""
