"""Learning-rate schedules: (step, steps) -> the factor on the optimizer's rate."""

import math


def constant(step: int, steps: int, warmup: int = 0) -> float:
    """1 after a linear warm-up of `warmup` steps (Ho et al., 2020: 5,000)."""
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0 (got {warmup})")
    return min(1.0, (step + 1) / (warmup + 1))


def cosine(step: int, steps: int, warmup: int = 0, floor: float = 0.01) -> float:
    """Half a cosine from 1 to `floor` over the whole training, times the warm-up."""
    falling = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return constant(step, steps, warmup) * (floor + (1 - floor) * falling)
