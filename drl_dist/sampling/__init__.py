"""From white noise to images."""
