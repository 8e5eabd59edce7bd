"""A page in which diffusion can be explored: the network of a run, or the exact denoiser."""
