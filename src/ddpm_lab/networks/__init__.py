"""What can stand inside a denoiser. A network knows nothing of diffusion: (x, t in 0..1000, condition) -> x's shape."""
