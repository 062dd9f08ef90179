"""Hyperparameter sweeps, as far as they need no Ray: spaces, proposals, the sweep's folder, its table and plots."""
