"""Visitors by the dozen, killed processes and hostile requests, against a running ``jobs/serve.py``."""
