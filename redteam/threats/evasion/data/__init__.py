"""Pairs of domains: digits, folders, and one ordinary data set without a target."""
