"""The diagonal Gaussian: the form of every step of a diffusion chain."""

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
        """mean + exp(log_var / 2) z, for standard normal `z` (B, ...)."""
        return self.mean + (0.5 * self.log_var).exp() * z

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other) per dimension, in nats, (B, ...)."""
        ratio = self.log_var - other.log_var
        distance = (self.mean - other.mean).square() * (-other.log_var).exp()
        return 0.5 * (torch.expm1(ratio) - ratio + distance)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x) per dimension, in nats, (B, ...)."""
        distance = (x - self.mean).square() * (-self.log_var).exp()
        return -0.5 * (math.log(2 * math.pi) + self.log_var + distance)

    def discretized_log_likelihood(self, x: Tensor, width: float) -> Tensor:
        """log P(bin of `width` around `x`) for x in [-1, 1], in nats, (B, ...).

        The two outermost bins extend to infinity (Ho et al., 2020, eq. 13). All terms are logs, so
        that the result is exact where the probability itself underflows.
        """
        # By symmetry, assume that x is below the mean, where the cdf is small and its log exact.
        below = x <= self.mean
        precision = (-0.5 * self.log_var).exp()
        z, half = -(x - self.mean).abs() * precision, 0.5 * width * precision
        first, last = x < -1 + width / 2, x > 1 - width / 2
        open_near = torch.where(below, last, first)  # the bin extends beyond the mean to infinity
        open_far = torch.where(below, first, last)
        high = torch.special.log_ndtr(z + half)
        gap = (torch.special.log_ndtr(z - half) - high).clamp(max=-torch.finfo(x.dtype).tiny)
        # log(1 - exp(gap)), in the form that is exact on each side, with finite gradients on both.
        split = -math.log(2)
        near = (-torch.expm1(gap.clamp(min=split))).log()
        far = torch.log1p(-gap.clamp(max=split).exp())
        mass = high + torch.where(gap > split, near, far)
        above_low_edge = torch.special.log_ndtr(half - z)
        return torch.where(open_far, high, torch.where(open_near, above_low_edge, mass))
