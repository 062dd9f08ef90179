"""The paper's two-dimensional studies (Figures 2 and 3): data with a known density at every noise level, with which
learned densities are compared."""
