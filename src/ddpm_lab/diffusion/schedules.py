"""Noise schedules: a schedule is a table of T + 1 rows. A new one is a function that returns a `Schedule`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Schedule(NamedTuple):
    """x_t = signal[t] x_0 + noise[t] eps, for t = 0 (the data: 1 and 0) to T, in float64."""

    alpha: Tensor
    """(T + 1,), sqrt(alpha_bar_t)"""
    sigma: Tensor
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


def linear(
    steps: int = 1000, start: float = 1e-4, end: float = 0.02, rescale: bool = True
) -> Schedule:
    """beta_t on a straight line from `start` to `end` (Ho et al., 2020, section 4).

    The ends belong to T = 1000. With `rescale` they are multiplied by 1000 / T (Nichol & Dhariwal, 2021), so that
    the last image holds the same noise whatever T; without, they are taken as they are.
    """
    return from_betas(_line(steps, *_ends(steps, rescale, start=start, end=end)))


def quadratic(
    steps: int = 1000, start: float = 1e-4, end: float = 0.02, rescale: bool = True
) -> Schedule:
    """sqrt(beta_t) on a straight line: the "quad" of Ho et al.'s code, the "linear" of latent diffusion's."""
    low, high = _ends(steps, rescale, start=start, end=end)
    return from_betas(_line(steps, low**0.5, high**0.5) ** 2)


def sigmoid(
    steps: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    width: float = 6.0,
    rescale: bool = True,
) -> Schedule:
    """beta_t on a logistic curve from -`width` to `width`, which nears `start` and `end` (the code of Song et al.'s
    DDIM, with width 6).
    """
    low, high = _ends(steps, rescale, start=start, end=end)
    if not 0 < width < math.inf:
        raise ValueError(f"width must be above 0 (got {width:g}); try 6")
    return from_betas(low + (high - low) * _line(steps, -width, width).sigmoid())


def constant(steps: int = 1000, beta: float = 0.02, rescale: bool = True) -> Schedule:
    """The same beta at every step (the "const" of Ho et al.'s code)."""
    (value,) = _ends(steps, rescale, beta=beta)
    return from_betas(torch.full((steps,), value, dtype=torch.float64))


def warmup(
    steps: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    share: float = 0.1,
    rescale: bool = True,
) -> Schedule:
    """beta_t on a straight line from `start` to `end` over the first `share` of the steps, then constant (the
    "warmup10" and "warmup50" of Ho et al.'s code).
    """
    low, high = _ends(steps, rescale, start=start, end=end)
    if not 0 <= share <= 1:
        raise ValueError(
            f"share is a part of the steps and must lie in [0, 1] (got {share:g}); try 0.1"
        )
    rising = int(steps * share)
    return from_betas(torch.cat([_line(rising, low, high), _line(steps - rising, high, high)]))


def jsd(steps: int = 1000, max_beta: float = 0.999) -> Schedule:
    """beta_t = 1 / (T - t + 1), so alpha_bar_t = 1 - t / T (Sohl-Dickstein et al., 2015), but for the last beta, which
    would be 1 and is cut at `max_beta`.
    """
    _check_steps(steps)
    return from_betas((1 / _line(steps, steps, 1)).clamp(max=_cut(max_beta)))


def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2(pi/2 (t/T + offset) / (1 + offset)), beta_t cut at `max_beta`
    (Nichol & Dhariwal, 2021, eq. 17).
    """
    _check_steps(steps)
    if not 0 <= offset < math.inf:
        raise ValueError(f"offset must be at least 0 (got {offset:g}); try 0.008")
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas((1 - f[1:] / f[:-1]).clamp(max=_cut(max_beta)))


def geometric(steps: int = 1000, low: float = 0.01, high: float = 50.0) -> Schedule:
    """Exploding variance: the signal stays 1, and noise_t grows in equal ratios from `low` to `high` (Song & Ermon,
    2019; the ends are Song et al.'s, 2021).
    """
    _check_steps(steps)
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"low must lie between 0 and high={high:g} (got {low:g}); try low=0.01 high=50"
        )
    sigma = _line(steps, math.log(low), math.log(high)).exp()
    if steps == 1:
        sigma[0] = high
    return Schedule(
        torch.ones(steps + 1, dtype=torch.float64), torch.cat([sigma.new_zeros(1), sigma])
    )


def _line(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _ends(steps: int, rescale: bool, **betas: float) -> list[float]:
    """The named betas, which belong to T = 1000, as they are at T = `steps`."""
    _check_steps(steps)
    scale = 1000 / steps if rescale else 1.0
    for name, beta in betas.items():
        if not 0 < beta < 1:
            fitting = "start=1e-4 end=0.02" if "end" in betas else f"{name}=0.02"
            raise ValueError(
                f"{name} is a beta and must lie between 0 and 1 (got {beta:g}); try {fitting}"
            )
        if name == "end" and beta < betas["start"]:
            raise ValueError(
                f"start={betas['start']:g} is above end={beta:g}, and beta_t must not fall; "
                "try start=1e-4 end=0.02"
            )
        if beta * scale >= 1:
            least = math.floor(1000 * beta) + 1
            raise ValueError(
                f"{name}={beta:g} rescaled to {steps} steps is beta = {beta * scale:g}, not below 1; "
                f"try steps={least} or more, or rescale=false"
            )
    return [beta * scale for beta in betas.values()]


def _cut(max_beta: float) -> float:
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must lie between 0 and 1 (got {max_beta:g}); try 0.999")
    return max_beta


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(
            f"steps, the T of the chain, must be at least 1 (got {steps}); try steps=1000"
        )
