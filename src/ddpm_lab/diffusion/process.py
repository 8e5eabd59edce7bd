"""The forward process q: every formula takes any pair of times, so full and strided chains are the same code."""

import logging

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.schedules import Schedule

LOG = logging.getLogger(__name__)


def per_pixel(number: Tensor, like: Tensor) -> Tensor:
    """One number per sample, (B,), or one for all, (), shaped and cast to meet `like`, (B, ...)."""
    number = number.to(like.dtype)
    return number.view(-1, *[1] * (like.ndim - 1)) if number.ndim else number


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """The time of each sample of `like`, (B, ...), from that of each or of all."""
    return t if t.ndim else torch.full((len(like),), int(t), device=like.device)


class ForwardProcess(nn.Module):
    """q(x_t | x_0) = N(signal_t x_0, noise_t^2 I) and what follows from it, whether the variance is preserved (VP) or
    explodes (VE).

    Times `t` and `s` are int64 in 0..T with s < t: (B,) where x is, or (), the same for all samples, on the CPU, so
    that samplers keep a GPU busy with pixels alone. The tables are float64 and stay out of checkpoints; numbers per
    sample are computed in float64 and cast where they meet pixels. A schedule that does not end in noise (more than
    1e-3 of the variance at T is signal) is used all the same, with a warning.
    """

    table: Tensor
    """(T + 1, 4) float64: signal, noise, log SNR, scale"""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.steps = len(schedule.alpha) - 1
        log_snr = 2 * (schedule.alpha.log() - schedule.sigma.log())
        scale = torch.hypot(*schedule)
        self._on_cpu = torch.stack([*schedule, log_snr, scale], dim=1).cpu()
        self.register_buffer("table", self._on_cpu, persistent=False)
        self.warn_nonzero_terminal_snr("schedule ends", self.steps)

    def warn_nonzero_terminal_snr(self, what: str, t: int) -> None:
        """Warns where x_t still holds a share of signal above 1e-3 of its variance, for sampling begins with noise."""
        alpha, _, _, scale = self.table[t].tolist()
        if (share := (alpha / scale) ** 2) > 1e-3:
            LOG.warning(
                "warning: %s at t = %d, where alpha_bar = %.2g is above 1e-3, and sampling starts from noise",
                what,
                t,
                share,
            )

    def _at(self, t: Tensor) -> Tensor:
        return (self.table if t.ndim else self._on_cpu)[t]

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """signal_t and noise_t, each of the shape of t, float64."""
        alpha, sigma, _, _ = self._at(t).unbind(-1)
        return alpha, sigma

    def log_snr(self, t: Tensor) -> Tensor:
        """log(signal_t^2 / noise_t^2), (B,); infinite at t = 0."""
        return self._at(t)[..., 2]

    def scale(self, t: Tensor) -> Tensor:
        """hypot(signal_t, noise_t), (B,): the standard deviation of x_t for data of unit variance; 1 if it is VP."""
        return self._at(t)[..., 3]

    def prior(self, z: Tensor, t: Tensor) -> Tensor:
        """Where a chain that begins at `t` starts from, given standard normal `z`, (B, ...): N(0, scale_t^2 I)."""
        return per_pixel(self.scale(t), z) * z

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = signal_t x_0 + noise_t eps (Ho et al., eq. 4)."""
        alpha, sigma = self.alpha_sigma(t)
        return per_pixel(alpha, x0) * x0 + per_pixel(sigma, x0) * eps

    def x0(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The x_0 from which `eps` leads to `x_t`."""
        alpha, sigma = self.alpha_sigma(t)
        return per_pixel(1 / alpha, x_t) * x_t - per_pixel(sigma / alpha, x_t) * eps

    def eps(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from `x0` to `x_t`."""
        alpha, sigma = self.alpha_sigma(t)
        return per_pixel(1 / sigma, x_t) * x_t - per_pixel(alpha / sigma, x_t) * x0

    def ddim_update(
        self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, level: Tensor | None = None
    ) -> Tensor:
        """signal_s x_0 + level eps with the `eps` that leads from `x0` to `x_t`; `level` (B,) is noise_s where it is
        not given, so that it is x_s of the probability-flow ODE's Euler step (Song et al., 2021, eq. 13).
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        kept = (sigma_s if level is None else level) / sigma_t
        return per_pixel(kept, x_t) * x_t + per_pixel(alpha_s - kept * alpha_t, x_t) * x0

    def score(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """grad log q(x_t | x_0) = -eps / noise_t (Song & Ermon, 2019); that of q(x_t) where x_0 is E[x_0 | x_t]."""
        alpha, sigma = self.alpha_sigma(t)
        return per_pixel(alpha / sigma**2, x_t) * x0 - per_pixel(sigma**-2, x_t) * x_t

    def tau(self, t: Tensor, s: Tensor) -> Tensor:
        """1 - SNR_t / SNR_s, (B,): the share of the noise in x_t that is not in x_s."""
        return -torch.expm1(self.log_snr(t) - self.log_snr(s))

    def beta(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of q(x_t | x_s), (B,); beta_t of the papers when s = t - 1."""
        return self.alpha_sigma(t)[1] ** 2 * self.tau(t, s)

    def beta_tilde(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of the posterior q(x_s | x_t, x_0), (B,); 0 at s = 0."""
        (_, sigma_t), (_, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        return self.beta(t, s) * (sigma_s / sigma_t) ** 2

    def log_beta_tilde(self, t: Tensor, s: Tensor) -> Tensor:
        """log of `beta_tilde`, (B,), finite everywhere.

        Where it would be log 0, at s = 0, it is that of the next step of the same length, beta_tilde(2t, t): Ho et
        al.'s clipped posterior variance, and improved-diffusion's where strides are equal. Where there is no next step
        (the one leap from T to 0) it is log beta(T, 0). Where variance explodes the next of many short steps adds
        little, so that this lies far below noise_t^2, and a decoder with it has a poor L_0; the analytic variance has
        not.
        """
        last = s == 0
        t, s = torch.where(last, (2 * t).clamp(max=self.steps), t), torch.where(last, t, s)
        return 2 * self.alpha_sigma(s)[1].log() + torch.where(t == s, 1.0, self.tau(t, s)).log()

    def posterior_coef_x0(self, t: Tensor, s: Tensor) -> Tensor:
        """The coefficient of x_0 in the posterior's mean, (B,)."""
        return self.alpha_sigma(s)[0] * self.tau(t, s)

    def posterior_coef_xt(self, t: Tensor, s: Tensor) -> Tensor:
        """The coefficient of x_t in the posterior's mean, (B,)."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        return alpha_t / alpha_s * (sigma_s / sigma_t) ** 2

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Mean of q(x_s | x_t, x_0) (Ho et al., eq. 7, for any pair)."""
        return (
            per_pixel(self.posterior_coef_x0(t, s), x0) * x0
            + per_pixel(self.posterior_coef_xt(t, s), x_t) * x_t
        )

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        """q(x_s | x_t, x_0), for s > 0."""
        return Gaussian(
            self.posterior_mean(x0, x_t, t, s), per_pixel(self.log_beta_tilde(t, s), x_t)
        )
