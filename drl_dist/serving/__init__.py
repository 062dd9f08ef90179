"""Requests of many visitors for images of one model, whose chains share calls of the network."""
