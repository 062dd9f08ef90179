"""Samplers that turn white noise into images: progressive, long-run, posterior and interpolated sampling."""
