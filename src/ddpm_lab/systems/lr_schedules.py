"""Learning-rate schedules: (step, steps) -> factor on the learning rate."""

import math
from dataclasses import dataclass


# Objects, not Hydra partials, which take 0.2 ms per call.
@dataclass(frozen=True)
class Constant:
    """Linear warm-up over `warmup` steps, then 1 (Ho et al., 2020: 5,000 steps).

    `warmup` None: 20 steps, or half of a shorter training.
    """

    warmup: int | None = 0

    def __post_init__(self) -> None:
        if self.warmup is not None and self.warmup < 0:
            raise ValueError(f"warmup must be at least 0 (got {self.warmup}); try 20")

    def __call__(self, step: int, steps: int) -> float:
        warmup = min(20, steps // 2) if self.warmup is None else self.warmup
        return min(1.0, (step + 1) / (warmup + 1))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `floor` over the training, times the warm-up of `Constant`."""

    warmup: int | None = 0
    floor: float = 0.01

    def __post_init__(self) -> None:
        Constant(self.warmup)  # raises ValueError
        if not 0 <= self.floor <= 1:
            raise ValueError(
                f"floor is a share of the learning rate and must lie in [0, 1] (got {self.floor:g})"
            )

    def __call__(self, step: int, steps: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
        return Constant(self.warmup)(step, steps) * (self.floor + (1 - self.floor) * decay)
