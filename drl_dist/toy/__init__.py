"""The paper's two-dimensional studies (Figures 2 and 3): data whose density is known at every noise level, so that a
learned density can be put beside it."""
