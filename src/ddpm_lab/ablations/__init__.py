"""Ablations: the table of a paper as a set of jobs, and its report."""
