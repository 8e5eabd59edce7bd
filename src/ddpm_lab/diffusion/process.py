"""The forward process q. Formulas take any pair of times, for full and strided chains alike."""

import logging

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.schedules import Schedule

LOG = logging.getLogger(__name__)


def per_pixel(number: Tensor, like: Tensor) -> Tensor:
    """Cast and reshape numbers per sample, (B,) or (), to broadcast against `like` (B, ...)."""
    number = number.to(like.dtype)
    return number.view(-1, *[1] * (like.ndim - 1)) if number.ndim else number


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """Expand a time to one per sample of `like` (B, ...), (B,)."""
    return t if t.ndim else torch.full((len(like),), int(t), device=like.device)


class ForwardProcess(nn.Module):
    """q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) and its posteriors, for VP and VE schedules.

    Times `t` and `s` are int64 in 0..T with s < t. They have shape (B,) on the device of x, or ()
    on the CPU for all samples at once, so that a sampler does not synchronize with the GPU.
    Tables and per-sample numbers are float64 and are cast where they meet pixels. They are not part
    of checkpoints. Logs a warning if more than 1e-3 of the variance at T is signal.
    """

    table: Tensor
    """(T + 1, 4) float64: alpha, sigma, log SNR, scale"""
    steps: int
    """T, the number of steps of the schedule"""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.steps = len(schedule.alpha) - 1
        log_snr = 2 * (schedule.alpha.log() - schedule.sigma.log())
        scale = torch.hypot(*schedule)
        self._cpu_table = torch.stack([*schedule, log_snr, scale], dim=1).cpu()
        self.register_buffer("table", self._cpu_table, persistent=False)
        self.warn_nonzero_terminal_snr("schedule ends", self.steps)

    def warn_nonzero_terminal_snr(self, what: str, t: int) -> None:
        """Warn if the signal's share of the variance of x_t is above 1e-3 (Lin et al., 2024)."""
        alpha, _, _, scale = self.table[t].tolist()
        if (share := (alpha / scale) ** 2) > 1e-3:
            LOG.warning(
                f"warning: {what} at t = {t}, where alpha_bar = {share:.2g} is above 1e-3, "
                "but sampling starts from pure noise"
            )

    def _rows(self, t: Tensor) -> Tensor:
        return (self.table if t.ndim else self._cpu_table)[t]

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t, each in the shape of `t`, float64."""
        alpha, sigma, _, _ = self._rows(t).unbind(-1)
        return alpha, sigma

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), in the shape of `t`; infinite at t = 0."""
        return self._rows(t)[..., 2]

    def scale(self, t: Tensor) -> Tensor:
        """hypot(alpha_t, sigma_t), the standard deviation of x_t for unit data; 1 if VP."""
        return self._rows(t)[..., 3]

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
        self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, sigma: Tensor | None = None
    ) -> Tensor:
        """alpha_s x_0 + sigma eps, with the `eps` that leads from `x0` to `x_t`.

        `sigma` (B,) or () defaults to sigma_s. The result is then x_s of an Euler step of the
        probability-flow ODE (Song et al., 2021, eq. 13).
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        ratio = (sigma_s if sigma is None else sigma) / sigma_t
        return per_pixel(ratio, x_t) * x_t + per_pixel(alpha_s - ratio * alpha_t, x_t) * x0

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

    def tau(self, t: Tensor, s: Tensor) -> Tensor:
        """1 - SNR_t / SNR_s: the share of the noise in x_t that is not in x_s."""
        return -torch.expm1(self.log_snr(t) - self.log_snr(s))

    def beta(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of q(x_t | x_s); the papers' beta_t for s = t - 1."""
        return self.alpha_sigma(t)[1] ** 2 * self.tau(t, s)

    def beta_tilde(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of the posterior q(x_s | x_t, x_0), beta sigma_s^2 / sigma_t^2; 0 at s = 0."""
        (_, sigma_t), (_, sigma_s) = self.alpha_sigma(t), self.alpha_sigma(s)
        return self.beta(t, s) * (sigma_s / sigma_t) ** 2

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

    def posterior_coef_x0(self, t: Tensor, s: Tensor) -> Tensor:
        """Coefficient of x_0 in the posterior mean, alpha_s tau."""
        return self.alpha_sigma(s)[0] * self.tau(t, s)

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
