"""Markov chains over images, batched on axis 0."""
