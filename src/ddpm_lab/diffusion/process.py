"""The forward process q. Formulas take any pair of times, for full and strided chains alike."""

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.schedules import Schedule

LOG = logging.getLogger(__name__)
MAX_NUMBERS = 50_000
"""Largest number of results in a cache of `compute_once`"""
T = TypeVar("T", bound=Callable[..., Any])


def per_pixel(number: Tensor, like: Tensor) -> Tensor:
    """Cast and reshape numbers per sample, (B,) or (), to broadcast against `like` (B, ...)."""
    number = number.to(like.dtype)
    return number.view(-1, *[1] * (like.ndim - 1)) if number.ndim else number


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """Expand a time to one per sample of `like` (B, ...), (B,)."""
    return t if t.ndim else torch.full((len(like),), t.item(), dtype=t.dtype, device=like.device)


def as_times(times: float | Sequence[float]) -> Tensor:
    """Convert numbers to int64 times, or to float64 if one of them is a float."""
    return torch.from_numpy(np.array(times))


def interpolate(table: Tensor, t: Tensor, data_std: float = 1.0) -> Tensor:
    """Return the rows of `table`, (T + 1, 4), at float times `t` in [0, T], (..., 4) float64.

    log SNR is linear between the entries. Between 0 and 1, where it begins at infinity, sigma /
    alpha is linear; before T, where it may end at -infinity, alpha / sigma then is. log alpha is
    linear in log(scale / alpha). The process therefore preserves the variance, or has alpha = 1,
    wherever the entries do.
    """
    low = t.floor().long().clamp(0, len(table) - 2)
    share = t.double() - low
    (alpha, _, log_snr, scale), (next_alpha, _, next_log_snr, next_scale) = (
        table[row].unbind(-1) for row in (low, low + 1)
    )

    def log_scale(log_snr: Tensor) -> Tensor:
        return 0.5 * torch.log1p((-log_snr).exp() / data_std**2)  # of scale / (alpha data_std)

    start, end = log_scale(log_snr), log_scale(next_log_snr)
    ends_in_noise = next_log_snr.isinf()
    to_noise = log_snr + 2 * torch.log1p(-share)
    linear = torch.lerp(log_snr, next_log_snr, share)
    log_snr = torch.where(ends_in_noise, to_noise, linear)
    log_snr = torch.where(low == 0, next_log_snr - 2 * share.log(), log_snr)
    here = log_scale(log_snr)
    alpha = torch.lerp(alpha.log(), next_alpha.log(), (here - start) / (end - start)).exp()
    mean_scale = torch.lerp(scale, next_scale, share)
    scale = torch.where(ends_in_noise, mean_scale, data_std * alpha * here.exp())
    alpha = scale / (data_std**2 + (-log_snr).exp()).sqrt()
    sigma = scale / (1 + data_std**2 * log_snr.exp()).sqrt()
    return torch.stack([alpha, sigma, log_snr, scale], dim=-1)


def time_at(log_snr: Tensor, noise_level: Tensor) -> Tensor:
    """Return the times in [0, T] at which sigma_t / alpha_t is `noise_level`, float64.

    It inverts `interpolate`. `log_snr` (T + 1,) is that of the schedule. Levels above the one at T
    have the time T.
    """
    levels, level = -log_snr[1:].contiguous(), 2 * noise_level.double().log()
    index = torch.searchsorted(levels, level).clamp(max=len(levels) - 1)
    low, high = levels[(index - 1).clamp(min=0)], levels[index]
    to_noise = -torch.expm1(0.5 * (low - level))
    share = torch.where(high.isinf(), to_noise, (level - low) / (high - low))
    t = torch.where(index == 0, (0.5 * (level - high)).exp(), index + share)
    return t.clamp(max=len(levels))


class HasNumbers(Protocol):
    """An object with a cache for `compute_once`."""

    numbers: dict[tuple[Any, ...], Any]


def compute_once(function: T) -> T:
    """Make a function of an owner, of times, and of options compute its numbers for times () once.

    `owner.numbers` is the cache. A sampler's step on small images would take longer for its numbers
    than for its pixels.
    """

    @wraps(function)
    def cached(owner: HasNumbers, *times: Any) -> Any:
        if times[0].ndim:
            return function(owner, *times)
        key = (
            function.__qualname__,
            *[(time.item(), time.dtype) if isinstance(time, Tensor) else time for time in times],
        )
        if key not in owner.numbers:
            if len(owner.numbers) >= MAX_NUMBERS:
                owner.numbers.clear()
            with torch.inference_mode(False):  # autograd cannot save tensors of inference mode
                owner.numbers[key] = function(owner, *times)
        return owner.numbers[key]

    return cast(T, cached)


class ForwardProcess(nn.Module):
    """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) and its posteriors, for VP and VE schedules.

    Times `t` and `s` are int64 in 0..T, or floats in [0, T] (see `interpolate`), with s < t. They
    have shape (B,) on the device of x, or () on the CPU for all samples at once, so that a sampler
    does not synchronize with the GPU.
    Tables and per-sample numbers are float64 and are cast where they meet pixels. They are not part
    of checkpoints. Logs a warning if more than 1e-3 of the variance at T is signal.
    """

    table: Tensor
    """(T + 1, 4) float64: alpha, sigma, log SNR, scale"""
    numbers: dict[tuple[Any, ...], Any]
    """Cache of functions with `compute_once`"""
    steps: int
    """T, the number of steps of the schedule"""
    data_std: float
    """Standard deviation of x_0 for which `scale` is that of x_t; see `Schedule`"""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        alpha, sigma, self.data_std = schedule
        self.steps = len(alpha) - 1
        log_snr = 2 * (alpha.log() - sigma.log())
        scale = torch.hypot(self.data_std * alpha, sigma)
        self._cpu_table = torch.stack([alpha, sigma, log_snr, scale], dim=1).cpu()
        self.numbers = {}
        self.register_buffer("table", self._cpu_table, persistent=False)
        self.warn_nonzero_terminal_snr("schedule ends", self.steps)

    def warn_nonzero_terminal_snr(self, what: str, t: float) -> None:
        """Warn if the signal's share of the variance of x_t is above 1e-3 (Lin et al., 2024)."""
        alpha, _, _, scale = self._rows(as_times(t)).tolist()
        if (share := (self.data_std * alpha / scale) ** 2) > 1e-3:
            LOG.warning(
                f"warning: {what} at t = {round(t, 3)}, where alpha_bar = {share:.2g} is above "
                "1e-3, but sampling starts from pure noise"
            )

    def _rows(self, t: Tensor) -> Tensor:
        table = self.table if t.ndim else self._cpu_table
        return interpolate(table, t, self.data_std) if t.is_floating_point() else table[t]

    @compute_once
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t, each in the shape of `t`, float64."""
        alpha, sigma, _, _ = self._rows(t).unbind(-1)
        return alpha, sigma

    @compute_once
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), in the shape of `t`; infinite at t = 0."""
        return self._rows(t)[..., 2]

    @compute_once
    def scale(self, t: Tensor) -> Tensor:
        """hypot(data_std alpha_t, sigma_t), the standard deviation of x_t; 1 if VP."""
        return self._rows(t)[..., 3]

    def noise_level(self, t: Tensor) -> Tensor:
        """sigma_t / alpha_t, in the shape of `t`: the sigma of Karras et al. (2022)."""
        return (-0.5 * self.log_snr(t)).exp()

    def time(self, noise_level: Tensor) -> Tensor:
        """Return the float times of noise levels, in the shape of `noise_level`; see `time_at`."""
        table = self._cpu_table if noise_level.device.type == "cpu" else self.table
        return time_at(table[:, 2], noise_level)

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the first x_t of a chain that begins at `t`, N(0, scale_t^2 I), from noise `z`."""
        return per_pixel(self.scale(t), z) * z

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps (Ho et al., 2020, eq. 4)."""
        alpha, sigma = self.alpha_sigma(t)
        return per_pixel(alpha, x0) * x0 + per_pixel(sigma, x0) * eps

    def x0(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0 = (x_t - sigma_t eps) / alpha_t."""
        alpha, sigma = self.alpha_sigma(t)
        return per_pixel(1 / alpha, x_t) * x_t - per_pixel(sigma / alpha, x_t) * eps

    def eps(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """eps = (x_t - alpha_t x_0) / sigma_t."""
        alpha, sigma = self.alpha_sigma(t)
        return per_pixel(1 / sigma, x_t) * x_t - per_pixel(alpha / sigma, x_t) * x0

    def ddim_update(
        self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, eta: float = 0.0
    ) -> Tensor:
        """alpha_s x_0 + sqrt(sigma_s^2 - eta^2 beta_tilde) eps, for the `eps` from `x0` to `x_t`.

        With `eta` 0 it is an Euler step of the probability-flow ODE (Song et al., 2021, eq. 13),
        else the mean of a step to which noise of the variance eta^2 beta_tilde is added (eq. 12).
        """
        coef_xt, coef_x0 = self.ddim_coefs(t, s, eta)
        return per_pixel(coef_xt, x_t) * x_t + per_pixel(coef_x0, x_t) * x0

    @compute_once
    def ddim_coefs(self, t: Tensor, s: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Return the coefficients of x_t and of x_0 in `ddim_update`."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        if eta:
            sigma_s = (sigma_s**2 - eta**2 * self.beta_tilde(t, s)).clamp(min=0).sqrt()
        ratio = sigma_s / sigma_t
        return ratio, alpha_s - ratio * alpha_t

    def rediffuse(self, x_s: Tensor, eps: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """x_t = (alpha_t / alpha_s) x_s + sqrt(beta) eps, a draw of q(x_t | x_s)."""
        ratio = self.alpha_sigma(t)[0] / self.alpha_sigma(s)[0]
        return per_pixel(ratio, x_s) * x_s + per_pixel(self.beta(t, s).sqrt(), x_s) * eps

    def score(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """grad log q(x_t | x_0) = -eps / sigma_t (Song & Ermon, 2019).

        For x_0 = E[x_0 | x_t] it is the score of q(x_t).
        """
        alpha, sigma = self.alpha_sigma(t)
        return per_pixel(alpha / sigma**2, x_t) * x0 - per_pixel(sigma**-2, x_t) * x_t

    @compute_once
    def tau(self, t: Tensor, s: Tensor) -> Tensor:
        """1 - SNR_t / SNR_s: the share of the noise in x_t that is not in x_s."""
        return -torch.expm1(self.log_snr(t) - self.log_snr(s))

    @compute_once
    def beta(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of q(x_t | x_s); the papers' beta_t for s = t - 1."""
        return self.alpha_sigma(t)[1] ** 2 * self.tau(t, s)

    @compute_once
    def beta_tilde(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of the posterior q(x_s | x_t, x_0), beta sigma_s^2 / sigma_t^2; 0 at s = 0."""
        (_, sigma_t), (_, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        return self.beta(t, s) * (sigma_s / sigma_t) ** 2

    @compute_once
    def log_beta_tilde(self, t: Tensor, s: Tensor) -> Tensor:
        """log of `beta_tilde`, finite everywhere.

        At s = 0, where it would be log 0, it is that of the next step of the same length,
        beta_tilde(2t, t): Ho et al.'s clipped posterior variance, and improved-diffusion's for
        equal strides. The single step from T to 0 has no next step and uses log beta(T, 0).

        For VE schedules with many steps this value lies far below sigma_t^2, because the next step
        adds little noise. The decoder term L_0 is then poor; the analytic variance avoids this.
        """
        last = s == 0
        t, s = torch.where(last, (2 * t).clamp(max=self.steps), t), torch.where(last, t, s)
        return 2 * self.alpha_sigma(s)[1].log() + torch.where(t == s, 1.0, self.tau(t, s)).log()

    @compute_once
    def posterior_coef_x0(self, t: Tensor, s: Tensor) -> Tensor:
        """Coefficient of x_0 in the posterior mean, alpha_s tau."""
        return self.alpha_sigma(s)[0] * self.tau(t, s)

    @compute_once
    def posterior_coef_xt(self, t: Tensor, s: Tensor) -> Tensor:
        """Coefficient of x_t in the posterior mean, (alpha_t / alpha_s) (sigma_s / sigma_t)^2."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        return alpha_t / alpha_s * (sigma_s / sigma_t) ** 2

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Mean of q(x_s | x_t, x_0) (Ho et al., 2020, eq. 7, for any pair of times)."""
        coef_x0, coef_xt = self.posterior_coef_x0(t, s), self.posterior_coef_xt(t, s)
        return per_pixel(coef_x0, x0) * x0 + per_pixel(coef_xt, x_t) * x_t

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """q(x_s | x_t, x_0), for s > 0."""
        log_var = per_pixel(self.log_beta_tilde(t, s), x_t)
        return Gaussian(self.posterior_mean(x0, x_t, t, s), log_var)
