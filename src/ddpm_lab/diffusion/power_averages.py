"""Averages of weights of any length, after training (Karras et al., 2024, "training dynamics").

An average at step t has the profile p(t') ~ t'^gamma on [0, t]. Its length is the standard
deviation of p divided by t. A few averages, saved along training, combine to averages of other
lengths.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Gt, Le

from ddpm_lab.diffusion.ema_model import EMAModel, M
from ddpm_lab.utils.ranges import check_ranges

Length = Annotated[float, Gt(0), Le(0.28)]
"""Relative standard deviation of a profile; that of a uniform one is 0.289"""


class Profile(NamedTuple):
    """p(t') = (gamma + 1) t'^gamma / step^(gamma + 1) on [0, step]."""

    step: float
    gamma: float


@check_ranges
def profile(step: float, length: Length) -> Profile:
    """Return the profile of a length: length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return Profile(step, float(roots.real[abs(roots.imag) < 1e-9].max()))


class PowerAverage(EMAModel[M]):
    """average += (1 - d) (weights - average) at update n, with d = (1 - 1 / n)^(gamma + 1)."""

    def __init__(self, model: M, length: float) -> None:
        super().__init__(model)
        self.gamma = profile(1, length).gamma

    def next_decay(self) -> float:
        return (1 - 1 / self.updates) ** (self.gamma + 1)


def combine(averages: Sequence[Profile], target: Profile) -> tuple[np.ndarray, float]:
    """Return the coefficients (N,) float64, which sum to 1, of the best approximation of `target`.

    Best in the L2 norm of profiles. Also returns the error of the profile, relative to `target`.
    """
    gram = np.array([[_inner_product(a, b) for b in averages] for a in averages])
    products = np.array([_inner_product(a, target) for a in averages])
    coefficients = np.linalg.solve(gram, products)
    coefficients /= coefficients.sum()
    norm = _inner_product(target, target)
    square = norm - 2 * coefficients @ products + coefficients @ gram @ coefficients
    return coefficients, float((max(square, 0) / norm) ** 0.5)


def _inner_product(a: Profile, b: Profile) -> float:
    """Return the integral of the product of two profiles."""
    exponent = b.gamma if a.step < b.step else -a.gamma
    ratio = (a.step / b.step) ** exponent
    scale = (a.gamma + b.gamma + 1) * max(a.step, b.step)
    return (a.gamma + 1) * (b.gamma + 1) * ratio / scale
