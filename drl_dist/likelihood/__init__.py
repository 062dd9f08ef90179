"""Normalising constants along the ladder, and the likelihood of images (section 4.2, appendix A.6)."""
