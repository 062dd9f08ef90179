"""Sweeps over hyperparameters on Ray Tune."""
