"""Image shards in object storage: their format, their order, and the way to the training step."""
