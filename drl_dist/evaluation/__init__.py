"""Scores of generated images (FID, KID, inception score), and out-of-distribution detection by log-density."""
