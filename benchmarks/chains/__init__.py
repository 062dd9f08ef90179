"""Chains of one trained energy: what other starts, moves and ends make of the same weights."""
