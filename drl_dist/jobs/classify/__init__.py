"""Classification, inference of missing labels and out-of-distribution scores by the energies of labels."""
