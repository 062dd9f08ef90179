"""What a thousand workers cost: the real code for one to 4096 simulated workers, and how each cost grows."""
