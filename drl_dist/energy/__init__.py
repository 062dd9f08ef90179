"""Log-densities: trainable networks, and analytic ones to test the other packages against."""
