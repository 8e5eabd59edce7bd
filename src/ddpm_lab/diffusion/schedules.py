"""Noise schedules: a schedule is a table of T + 1 rows. A new one is a function that returns a `Schedule`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Schedule(NamedTuple):
    """x_t = signal[t] x_0 + noise[t] eps, for t = 0 (the data: 1 and 0) to T, in float64."""

    signal: Tensor
    """(T + 1,), sqrt(alpha_bar_t)"""
    noise: Tensor
    """(T + 1,), sqrt(1 - alpha_bar_t)"""


def from_betas(betas: Tensor) -> Schedule:
    """The variance-preserving schedule of beta_1..beta_T, (T,); sums of logs keep 1 - alpha_bar exact near the data.

    Raises ValueError for a beta outside (0, 1).
    """
    outside = ~((betas > 0) & (betas < 1))
    if outside.any():
        t = int(outside.nonzero()[0])
        raise ValueError(f"every beta_t must lie between 0 and 1 (got beta_{t + 1} = {betas[t]:g})")
    log_alpha_bar = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])
    return Schedule((0.5 * log_alpha_bar).exp(), (-torch.expm1(log_alpha_bar)).sqrt())


def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02, rescale: bool = True) -> Schedule:
    """beta_t on a straight line from `start` to `end` (Ho et al., 2020, section 4).

    The ends belong to T = 1000. With `rescale` they are multiplied by 1000 / T (Nichol & Dhariwal, 2021), so that
    the last picture holds the same noise whatever T; without, they are taken as they are.
    """
    return from_betas(_line(steps, *_ends(steps, start, end, rescale)))


def quadratic(steps: int = 1000, start: float = 1e-4, end: float = 0.02, rescale: bool = True) -> Schedule:
    """sqrt(beta_t) on a straight line: the "quad" of Ho et al.'s code, the "linear" of latent diffusion's."""
    low, high = _ends(steps, start, end, rescale)
    return from_betas(_line(steps, low**0.5, high**0.5) ** 2)


def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2(pi/2 (t/T + offset) / (1 + offset)), beta_t cut at `max_beta`
    (Nichol & Dhariwal, 2021, eq. 17).
    """
    _check_steps(steps)
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must lie between 0 and 1 (got {max_beta:g}); try 0.999")
    if offset < 0:
        raise ValueError(f"offset must be at least 0 (got {offset:g})")
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def _line(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _ends(steps: int, start: float, end: float, rescale: bool) -> tuple[float, float]:
    _check_steps(steps)
    for name, beta in {"start": start, "end": end}.items():
        if not 0 < beta < 1:
            raise ValueError(f"{name} is a beta and must lie between 0 and 1 (got {beta:g}); try start=1e-4 end=0.02")
    scale = 1000 / steps if rescale else 1.0
    if end * scale >= 1:
        least = math.floor(1000 * end) + 1
        raise ValueError(f"end={end:g} rescaled to {steps} steps is beta = {end * scale:g}, not below 1; "
                         f"try steps={least} or more, or rescale=false")  # fmt: skip
    return start * scale, end * scale


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps, the T of the chain, must be at least 1 (got {steps}); try steps=1000")
