"""Out-of-distribution detection by log-density."""
