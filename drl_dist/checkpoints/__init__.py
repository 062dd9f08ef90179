"""Checkpoints as folders of safetensors and JSON, with checksums: no pickle."""
