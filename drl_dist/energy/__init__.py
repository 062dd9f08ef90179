"""Log-densities: networks that learn them, and analytic ones that test everything else."""
