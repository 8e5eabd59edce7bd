"""Learning-rate schedules: (step, steps) -> the factor on the optimizer's rate."""

import math
from dataclasses import dataclass


# Values, not partial functions: they are called at every step, and Hydra's partials take 0.2 ms a call.
@dataclass(frozen=True)
class Constant:
    """1 after a linear warm-up of `warmup` steps (Ho et al., 2020: 5,000); None: 20, or half of what is shorter."""

    warmup: int | None = 0

    def __post_init__(self) -> None:
        if self.warmup is not None and self.warmup < 0:
            raise ValueError(f"warmup must be at least 0 (got {self.warmup}); try 20")

    def __call__(self, step: int, steps: int) -> float:
        warmup = min(20, steps // 2) if self.warmup is None else self.warmup
        return min(1.0, (step + 1) / (warmup + 1))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `floor` over the whole training, times the warm-up."""

    warmup: int | None = 0
    floor: float = 0.01

    def __post_init__(self) -> None:
        Constant(self.warmup)
        if not 0 <= self.floor <= 1:
            raise ValueError(
                f"floor is a share of the rate and must lie in [0, 1] (got {self.floor:g})"
            )

    def __call__(self, step: int, steps: int) -> float:
        falling = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
        return Constant(self.warmup)(step, steps) * (self.floor + (1 - self.floor) * falling)
