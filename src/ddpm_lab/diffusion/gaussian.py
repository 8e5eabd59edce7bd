"""A diagonal Gaussian, what one step of a chain is made of."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """N(mean, exp(log_var) I)."""

    mean: Tensor
    """(B, ...)"""
    log_var: Tensor
    """Broadcasts against the mean."""

    def rsample(self, z: Tensor) -> Tensor:
        """The point that standard normal `z` (B, ...) is carried to."""
        return self.mean + (0.5 * self.log_var).exp() * z

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other) in each dimension, in nats, (B, ...)."""
        ratio = self.log_var - other.log_var
        distance = (self.mean - other.mean).square() * (-other.log_var).exp()
        return 0.5 * (torch.expm1(ratio) - ratio + distance)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x) in each dimension, in nats, (B, ...)."""
        return -0.5 * (
            math.log(2 * math.pi) + self.log_var + (x - self.mean).square() * (-self.log_var).exp()
        )

    def discretized_log_likelihood(self, x: Tensor, width: float) -> Tensor:
        """log of the probability of the bin of `width` around `x` in [-1, 1], in nats, (B, ...); the two outermost bins
        reach to infinity (Ho et al., eq. 13).

        Everything stays in logs, so that it is right where the probability itself is far below the smallest float.
        """
        # By symmetry x may be taken to lie below the mean: there the cdf is small, and its log exact.
        below = x <= self.mean
        precision = (-0.5 * self.log_var).exp()
        z, half = -(x - self.mean).abs() * precision, 0.5 * width * precision
        first, last = x < -1 + width / 2, x > 1 - width / 2
        open_near = torch.where(below, last, first)  # the bin reaches over the mean to infinity
        open_far = torch.where(below, first, last)
        high = torch.special.log_ndtr(z + half)
        gap = (torch.special.log_ndtr(z - half) - high).clamp(max=-torch.finfo(x.dtype).tiny)
        # log(1 - exp(gap)) in the form that is exact on each side, with gradients that are finite on both.
        split = -math.log(2)
        near, far = (
            (-torch.expm1(gap.clamp(min=split))).log(),
            torch.log1p(-gap.clamp(max=split).exp()),
        )
        mass = high + torch.where(gap > split, near, far)
        above_low_edge = torch.special.log_ndtr(half - z)
        return torch.where(open_far, high, torch.where(open_near, above_low_edge, mass))
