"""Parts of my own for ddpm-lab."""
