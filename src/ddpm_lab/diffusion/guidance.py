"""Guidance is a denoiser around a denoiser; samplers and metrics never hear of it."""

import torch
from torch import Tensor

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.diffusion.denoiser import Denoises, Estimate


def none(denoiser: Denoises) -> Denoises:
    """No guidance."""
    return denoiser


class ClassifierFree:
    """eps = (1 + w) eps(x, y) - w eps(x, null) (Ho & Salimans, 2022, eq. 6); w = 0 is off.

    Said of x_0, which is affine in eps; a learned variance stays that of the given condition. One network call of twice
    the batch per step.
    Raises ValueError if w is not off and the denoiser was not trained with dropped conditions.
    """

    def __init__(self, denoiser: Denoises, w: float = 0.0) -> None:
        if not 0 <= w < float("inf"):
            raise ValueError(f"w must be a number of at least 0 (got {w}); 0 is off, try w=1")
        if w and not denoiser.knows_null:
            raise ValueError(f"w={w:g} needs a model trained with labels, of which some were dropped; "
                             "try w=0, or train with conditioner=label conditioner.dropout=0.1")  # fmt: skip
        self.denoiser, self.process, self.reverse = denoiser, denoiser.process, denoiser.reverse
        self.knows_null = denoiser.knows_null
        self.w = w

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        if self.w == 0:
            return self.denoiser(x_t, t, cond)
        if cond.label is None:
            raise ValueError(f"w={self.w:g} needs a condition to strengthen, and there is none")
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), cond.beside(cond.null()))
        given, absent = both.x0.chunk(2)
        spread = None if both.spread is None else both.spread.chunk(2)[0]
        return Estimate(given + self.w * (given - absent), spread)
