"""Denoising diffusion experiments, checked against exact mathematics."""
