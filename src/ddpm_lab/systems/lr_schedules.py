"""Learning-rate schedules: (step, steps) -> factor on the learning rate."""

import math
from dataclasses import dataclass

from ddpm_lab.utils.ranges import Fraction, NonNegativeInt, check_ranges


# Objects, not Hydra partials, which take 0.2 ms per call.
@check_ranges
@dataclass(frozen=True)
class Constant:
    """Linear warm-up over `warmup` steps, then 1 (Ho et al., 2020: 5,000 steps).

    `warmup` None: 20 steps, or half of a shorter training.
    """

    warmup: NonNegativeInt | None = 0

    def __call__(self, step: int, steps: int) -> float:
        warmup = min(20, steps // 2) if self.warmup is None else self.warmup
        return min(1.0, (step + 1) / (warmup + 1))


@check_ranges
@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `floor` over the training, times the warm-up of `Constant`."""

    warmup: NonNegativeInt | None = 0
    floor: Fraction = 0.01

    def __call__(self, step: int, steps: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
        return Constant(self.warmup)(step, steps) * (self.floor + (1 - self.floor) * decay)
