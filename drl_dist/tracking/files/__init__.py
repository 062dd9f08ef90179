"""A run's metrics and pictures as files in its folder, on any storage; needs neither MLflow nor Ray."""
