"""Scores of a split, what is left to look at, and comparisons of runs."""
