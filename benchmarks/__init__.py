"""Benchmarks and measurements, run from a checkout."""
