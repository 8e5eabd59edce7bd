"""Noise schedules: tables of T + 1 rows. To add one, write a function that returns a `Schedule`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Schedule(NamedTuple):
    """x_t = alpha_t x_0 + sigma_t eps for t = 0 (the data: 1 and 0) to T, in float64."""

    alpha: Tensor
    """(T + 1,), sqrt(alpha_bar_t)"""
    sigma: Tensor
    """(T + 1,), sqrt(1 - alpha_bar_t) if the variance is preserved"""


def from_betas(betas: Tensor) -> Schedule:
    """Return the variance-preserving schedule of beta_1..beta_T, (T,).

    Sums of logs keep 1 - alpha_bar exact near the data. Raises ValueError for a beta not in (0, 1).
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

    `start` and `end` are meant for T = 1000. `rescale` multiplies them by 1000 / T (Nichol &
    Dhariwal, 2021), so that x_T is equally noisy for every T.
    """
    return from_betas(_line(steps, *_scale_betas(steps, rescale, start=start, end=end)))


def quadratic(
    steps: int = 1000, start: float = 1e-4, end: float = 0.02, rescale: bool = True
) -> Schedule:
    """sqrt(beta_t) on a line: "quad" in Ho et al.'s code, "linear" in latent diffusion's."""
    low, high = _scale_betas(steps, rescale, start=start, end=end)
    return from_betas(_line(steps, low**0.5, high**0.5) ** 2)


def sigmoid(
    steps: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    width: float = 6.0,
    rescale: bool = True,
) -> Schedule:
    """beta_t = start + (end - start) sigmoid(u), with u on a line from -`width` to `width`.

    The code of DDIM (Song et al., 2021) has width 6.
    """
    low, high = _scale_betas(steps, rescale, start=start, end=end)
    if not 0 < width < math.inf:
        raise ValueError(f"width must be above 0 (got {width:g}); try 6")
    return from_betas(low + (high - low) * _line(steps, -width, width).sigmoid())


def constant(steps: int = 1000, beta: float = 0.02, rescale: bool = True) -> Schedule:
    """The same beta at every step ("const" in Ho et al.'s code)."""
    (value,) = _scale_betas(steps, rescale, beta=beta)
    return from_betas(torch.full((steps,), value, dtype=torch.float64))


def warmup(
    steps: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    share: float = 0.1,
    rescale: bool = True,
) -> Schedule:
    """beta_t on a line from `start` to `end` over the first `share` of the steps, then constant.

    "warmup10" and "warmup50" in Ho et al.'s code.
    """
    low, high = _scale_betas(steps, rescale, start=start, end=end)
    if not 0 <= share <= 1:
        raise ValueError(f"share of the steps must lie in [0, 1] (got {share:g}); try 0.1")
    rising = int(steps * share)
    return from_betas(torch.cat([_line(rising, low, high), _line(steps - rising, high, high)]))


def jsd(steps: int = 1000, max_beta: float = 0.999) -> Schedule:
    """beta_t = 1 / (T - t + 1), hence alpha_bar_t = 1 - t / T (Sohl-Dickstein et al., 2015).

    The last beta would be 1 and is clipped to `max_beta`.
    """
    _check_steps(steps)
    return from_betas(_clip(1 / _line(steps, steps, 1), max_beta))


def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2(pi/2 (t/T + offset) / (1 + offset)).

    beta_t is clipped to `max_beta` (Nichol & Dhariwal, 2021, eq. 17).
    """
    _check_steps(steps)
    if not 0 <= offset < math.inf:
        raise ValueError(f"offset must be at least 0 (got {offset:g}); try 0.008")
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas(_clip(1 - f[1:] / f[:-1], max_beta))


def geometric(steps: int = 1000, low: float = 0.01, high: float = 50.0) -> Schedule:
    """Variance exploding: alpha_t = 1, sigma_t in equal ratios from `low` to `high`.

    Song & Ermon (2019), with the range of Song et al. (2021).
    """
    _check_steps(steps)
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"low must lie between 0 and high={high:g} (got {low:g}); try low=0.01 high=50"
        )
    sigma = _line(steps, math.log(low), math.log(high)).exp()
    if steps == 1:
        sigma[0] = high
    alpha = torch.ones(steps + 1, dtype=torch.float64)
    return Schedule(alpha, torch.cat([sigma.new_zeros(1), sigma]))


def _line(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scale_betas(steps: int, rescale: bool, **betas: float) -> list[float]:
    """Return the named betas, which are meant for T = 1000, for T = `steps`."""
    _check_steps(steps)
    scale = 1000 / steps if rescale else 1.0
    for name, beta in betas.items():
        if not 0 < beta < 1:
            hint = "start=1e-4 end=0.02" if "end" in betas else f"{name}=0.02"
            raise ValueError(
                f"{name} is a beta and must lie between 0 and 1 (got {beta:g}); try {hint}"
            )
        if name == "end" and beta < betas["start"]:
            raise ValueError(
                f"start={betas['start']:g} is above end={beta:g}, and beta_t must not fall; "
                "try start=1e-4 end=0.02"
            )
        if beta * scale >= 1:
            raise ValueError(
                f"{name}={beta:g} rescaled to {steps} steps is beta = {beta * scale:g}, "
                f"which is not below 1; try steps={math.floor(1000 * beta) + 1} or more, "
                "or rescale=false"
            )
    return [beta * scale for beta in betas.values()]


def _clip(betas: Tensor, max_beta: float) -> Tensor:
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must lie between 0 and 1 (got {max_beta:g}); try 0.999")
    return betas.clamp(max=max_beta)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(
            f"steps, the T of the chain, must be at least 1 (got {steps}); try steps=1000"
        )
