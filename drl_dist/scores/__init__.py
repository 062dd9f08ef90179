"""How good images are: FID, KID and inception score against a data set, and log-densities of two data sets."""
