"""Denoising diffusion experiments, checked against exact mathematics."""

__version__ = "0.2.0"
