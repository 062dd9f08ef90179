"""Images made from what is given of them: interpolation, inpainting, denoising, super-resolution, as jobs."""
