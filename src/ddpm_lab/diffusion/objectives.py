"""What training minimises: (denoiser, draw) -> one loss per sample."""

from typing import NamedTuple

from torch import Tensor

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.diffusion.denoiser import Denoiser


class Draw(NamedTuple):
    """One noised batch."""

    x0: Tensor
    """(B, C, H, W) in [-1, 1]"""
    eps: Tensor
    """(B, C, H, W)"""
    x_t: Tensor
    """(B, C, H, W)"""
    t: Tensor
    """(B,) int64 in 1..T"""
    cond: Condition


class Simple:
    """Mean squared error in the network's own terms, over pixels (Ho et al., 2020, eq. 14)."""

    def __call__(self, denoiser: Denoiser, draw: Draw) -> Tensor:
        """Losses, (B,)."""
        target = denoiser.prediction.target(denoiser.process, draw.x0, draw.eps, draw.t)
        return (denoiser.answer(draw.x_t, draw.t, draw.cond) - target).square().flatten(1).mean(1)
