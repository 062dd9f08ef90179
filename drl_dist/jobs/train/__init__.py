"""Training on Ray, and on one device without it."""
