"""Interpolation, inpainting, denoising and super-resolution."""
