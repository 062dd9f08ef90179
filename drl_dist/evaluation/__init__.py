"""Looking at what a model makes."""
