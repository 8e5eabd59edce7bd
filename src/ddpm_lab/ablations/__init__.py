"""Ablations: a paper's table as a set of jobs."""
