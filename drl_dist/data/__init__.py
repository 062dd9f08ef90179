"""Image shards in object storage: file format, order of samples, caching, decoding, and batches for training."""
