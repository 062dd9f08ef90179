"""What `import drl_dist` offers: loading, training and using a model in a few lines."""
