"""The data sets in the form in which they are published, one module each; commands import them when they work."""
