"""A diagonal Gaussian, what one step of a chain is made of."""

from typing import NamedTuple

from torch import Tensor


class Gaussian(NamedTuple):
    """N(mean, exp(log_var) I)."""

    mean: Tensor
    """(B, C, H, W)"""
    log_var: Tensor
    """Broadcasts against the mean."""

    def at(self, z: Tensor) -> Tensor:
        """The point that standard normal `z` (B, C, H, W) is carried to."""
        return self.mean + (0.5 * self.log_var).exp() * z
