"""Metrics of images and samples, and their registry (`metrics`)."""
