"""The forward process q: every formula takes any pair of times, so full and strided chains are the same code."""

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.schedules import Schedule


def per_pixel(number: Tensor, like: Tensor) -> Tensor:
    """One number per sample, (B,), shaped and cast to meet `like`, (B, ...)."""
    return number.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


class ForwardProcess(nn.Module):
    """q(x_t | x_0) = N(signal_t x_0, noise_t^2 I) and what follows from it.

    Times `t` and `s` are (B,) int64 in 0..T with s < t. The tables are float64 and stay out of checkpoints;
    numbers per sample are computed in float64 and cast where they meet pixels.
    """

    table: Tensor
    """(T + 1, 3) float64: signal, noise, log SNR"""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.steps = len(schedule.signal) - 1
        log_snr = 2 * (schedule.signal.log() - schedule.noise.log())
        self.register_buffer("table", torch.stack([*schedule, log_snr], dim=1), persistent=False)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """signal_t and noise_t, each (B,) float64."""
        signal, noise, _ = self.table[t].unbind(1)
        return signal, noise

    def log_snr(self, t: Tensor) -> Tensor:
        """log(signal_t^2 / noise_t^2), (B,); infinite at t = 0."""
        return self.table[t][:, 2]

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = signal_t x_0 + noise_t eps (Ho et al., eq. 4)."""
        signal, noise = self.scales(t)
        return per_pixel(signal, x0) * x0 + per_pixel(noise, x0) * eps

    def x0(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The x_0 from which `eps` leads to `x_t`."""
        signal, noise = self.scales(t)
        return per_pixel(1 / signal, x_t) * x_t - per_pixel(noise / signal, x_t) * eps

    def eps(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise that leads from `x0` to `x_t`; the score is -eps / noise_t."""
        signal, noise = self.scales(t)
        return per_pixel(1 / noise, x_t) * x_t - per_pixel(signal / noise, x_t) * x0

    def beta(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of q(x_t | x_s), (B,); beta_t of the papers when s = t - 1."""
        _, noise_t = self.scales(t)
        return noise_t**2 * -torch.expm1(self.log_snr(t) - self.log_snr(s))

    def beta_tilde(self, t: Tensor, s: Tensor) -> Tensor:
        """Variance of the posterior q(x_s | x_t, x_0), (B,); 0 at s = 0."""
        (_, noise_t), (_, noise_s) = self.scales(t), self.scales(s)
        return self.beta(t, s) * (noise_s / noise_t) ** 2

    def log_beta_tilde(self, t: Tensor, s: Tensor) -> Tensor:
        """log of `beta_tilde`, (B,), finite everywhere.

        Where it would be log 0, at s = 0, it is that of the next step of the same length, beta_tilde(2t, t): Ho et
        al.'s clipped posterior variance, and improved-diffusion's where strides are equal. Where there is no next step
        (the one leap from T to 0) it is log beta(T, 0).
        """
        last = s == 0
        later = torch.where(last, (2 * t).clamp(max=self.steps), t)
        value = torch.where(later == s.where(~last, t), self.beta(t, s), self.beta_tilde(later, s.where(~last, t)))
        return value.log()

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Mean of q(x_s | x_t, x_0) (Ho et al., eq. 7, for any pair); its variance is `beta_tilde`."""
        (signal_t, noise_t), (signal_s, noise_s) = self.scales(t), self.scales(s)
        from_x0 = signal_s * self.beta(t, s) / noise_t**2
        from_x_t = signal_t / signal_s * (noise_s / noise_t) ** 2
        return per_pixel(from_x0, x0) * x0 + per_pixel(from_x_t, x_t) * x_t
