"""Estimation of normalising constants along the ladder and of image likelihoods (section 4.2, appendix A.6)."""
