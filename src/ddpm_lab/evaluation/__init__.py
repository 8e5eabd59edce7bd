"""Metrics of samples and models, and the analytic tier without a network."""
