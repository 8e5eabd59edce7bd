"""Noise schedules: tables of T + 1 rows. To add one, write a function that returns a `Schedule`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lab.utils.ranges import (
    Count,
    Fraction,
    NonNegative,
    OpenFraction,
    Positive,
    check_ranges,
)

Beta = OpenFraction


class Schedule(NamedTuple):
    """x_t = alpha_t x_0 + sigma_t eps for t = 0 (the data: 1 and 0) to T, in float64."""

    alpha: Tensor
    """(T + 1,), sqrt(alpha_bar_t)"""
    sigma: Tensor
    """(T + 1,), sqrt(1 - alpha_bar_t) if the variance is preserved"""
    data_std: float = 1.0
    """Standard deviation of x_0, with which the network's input and v have unit variance"""


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


@check_ranges
def linear(
    steps: Count = 1000, start: Beta = 1e-4, end: Beta = 0.02, rescale: bool = True
) -> Schedule:
    """beta_t linear from `start` to `end` (Ho et al., 2020, section 4).

    `start` and `end` are meant for T = 1000. `rescale` multiplies them by 1000 / T (Nichol &
    Dhariwal, 2021), so that x_T is equally noisy for every T.
    """
    return from_betas(_line(steps, *_scale_betas(steps, rescale, start=start, end=end)))


@check_ranges
def quadratic(
    steps: Count = 1000, start: Beta = 1e-4, end: Beta = 0.02, rescale: bool = True
) -> Schedule:
    """sqrt(beta_t) on a line: "quad" in Ho et al.'s code, "linear" in latent diffusion's."""
    low, high = _scale_betas(steps, rescale, start=start, end=end)
    return from_betas(_line(steps, low**0.5, high**0.5) ** 2)


@check_ranges
def sigmoid(
    steps: Count = 1000,
    start: Beta = 1e-4,
    end: Beta = 0.02,
    width: Positive = 6.0,
    rescale: bool = True,
) -> Schedule:
    """beta_t = start + (end - start) sigmoid(u), with u on a line from -`width` to `width`.

    The code of DDIM (Song et al., 2021) has width 6.
    """
    low, high = _scale_betas(steps, rescale, start=start, end=end)
    return from_betas(low + (high - low) * _line(steps, -width, width).sigmoid())


@check_ranges
def constant(steps: Count = 1000, beta: Beta = 0.02, rescale: bool = True) -> Schedule:
    """The same beta at every step ("const" in Ho et al.'s code)."""
    (value,) = _scale_betas(steps, rescale, beta=beta)
    return from_betas(torch.full((steps,), value, dtype=torch.float64))


@check_ranges
def warmup(
    steps: Count = 1000,
    start: Beta = 1e-4,
    end: Beta = 0.02,
    share: Fraction = 0.1,
    rescale: bool = True,
) -> Schedule:
    """beta_t on a line from `start` to `end` over the first `share` of the steps, then constant.

    "warmup10" and "warmup50" in Ho et al.'s code.
    """
    low, high = _scale_betas(steps, rescale, start=start, end=end)
    rising = int(steps * share)
    return from_betas(torch.cat([_line(rising, low, high), _line(steps - rising, high, high)]))


@check_ranges
def jsd(steps: Count = 1000, max_beta: Beta = 0.999) -> Schedule:
    """beta_t = 1 / (T - t + 1), hence alpha_bar_t = 1 - t / T (Sohl-Dickstein et al., 2015).

    The last beta would be 1 and is clipped to `max_beta`.
    """
    return from_betas((1 / _line(steps, steps, 1)).clamp(max=max_beta))


@check_ranges
def cosine(steps: Count = 1000, offset: NonNegative = 0.008, max_beta: Beta = 0.999) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2(pi/2 (t/T + offset) / (1 + offset)).

    beta_t is clipped to `max_beta` (Nichol & Dhariwal, 2021, eq. 17).
    """
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta))


@check_ranges
def geometric(steps: Count = 1000, low: Positive = 0.01, high: Positive = 50.0) -> Schedule:
    """Variance exploding: alpha_t = 1, sigma_t in equal ratios from `low` to `high`.

    Song & Ermon (2019), with the range of Song et al. (2021, SDE).
    """
    if low >= high:
        raise ValueError(f"low must be below high={high:g} (got {low:g}); try low=0.01 high=50")
    sigma = _line(steps, math.log(low), math.log(high)).exp()
    if steps == 1:
        sigma[0] = high
    alpha = torch.ones(steps + 1, dtype=torch.float64)
    return Schedule(alpha, torch.cat([sigma.new_zeros(1), sigma]))


@check_ranges
def edm(
    steps: Count = 1000, low: Positive = 0.002, high: Positive = 80.0, data_std: Positive = 0.5
) -> Schedule:
    """`geometric` for data of standard deviation `data_std`: sigma_data of Karras et al. (2022).

    The network's time is affine in log sigma, as their c_noise. `steps` is the resolution of
    integer times only. With prediction=v the denoiser has their preconditioning (table 1).
    """
    return geometric(steps, low, high)._replace(data_std=data_std)


@check_ranges
def flow(steps: Count = 1000, shift: Positive = 1.0) -> Schedule:
    """x_t = (1 - u) x_0 + u eps, a straight path (Liu et al., 2023; Lipman et al., 2023).

    u = shift t / (T + (shift - 1) t). A `shift` above 1 has more noise at each time, as large
    images need: the root of the ratio of the numbers of pixels (Esser et al., 2024, eq. 23).
    """
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    u = shift * t / (1 + (shift - 1) * t)
    return Schedule(1 - u, u)


def _line(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scale_betas(steps: int, rescale: bool, **betas: float) -> list[float]:
    """Return the named betas, which are meant for T = 1000, for T = `steps`."""
    scale = 1000 / steps if rescale else 1.0
    if [*betas.values()] != sorted(betas.values()):
        text = " is above ".join(f"{name}={beta:g}" for name, beta in betas.items())
        raise ValueError(f"{text}, but beta_t must not decrease; try start=1e-4 end=0.02")
    for name, beta in betas.items():
        if beta * scale >= 1:
            raise ValueError(
                f"{name}={beta:g} rescaled to {steps} steps is {beta * scale:g}, not below 1; "
                f"try steps={math.floor(1000 * beta) + 1} or more, or rescale=false"
            )
    return [beta * scale for beta in betas.values()]
