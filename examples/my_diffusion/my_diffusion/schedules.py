"""Schedules: functions that return a table."""

import torch

from ddpm_lab.diffusion.schedules import Schedule


def log_snr(steps: int = 1000, high: float = 7.0, low: float = -7.0) -> Schedule:
    """Return the schedule whose log SNR falls on a line from `high` to `low` (t = 1 to T)."""
    if low >= high:
        raise ValueError(f"low must be below high={high:g} (got {low:g}); try low=-7 high=7")
    line = torch.linspace(high, low, steps, dtype=torch.float64)
    zero, one = line.new_zeros(1), line.new_ones(1)
    # alpha^2 + sigma^2 = 1 and alpha^2 / sigma^2 = exp(line); t = 0 is the data.
    alpha, sigma = line.sigmoid().sqrt(), (-line).sigmoid().sqrt()
    return Schedule(torch.cat([one, alpha]), torch.cat([zero, sigma]))
