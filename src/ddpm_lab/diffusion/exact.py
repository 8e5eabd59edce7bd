"""Data whose denoiser is known in closed form, and the exact law of what a sampler makes of it."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.diffusion.denoiser import Denoises, Estimate
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.diffusion.samplers import Sampler
from ddpm_lab.diffusion.variances import Variance


class GaussianDenoiser(nn.Module):
    """E[x_0 | x_t] for x_0 ~ N(mean, std^2 I)."""

    knows_null = True

    def __init__(self, process: ForwardProcess, variance: Variance, mean: float = 0.0, std: float = 0.5) -> None:
        super().__init__()
        self.process, self.variance, self.mean, self.std = process, variance, mean, std

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = Condition()) -> Estimate:
        signal, noise = self.process.scales(t)
        gain = per_pixel(signal * self.std**2 / ((signal * self.std) ** 2 + noise**2), x_t)
        return Estimate(self.mean + gain * (x_t - per_pixel(signal, x_t) * self.mean))

    def reverse(self, guess: Estimate, x_t: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        mean = self.process.posterior_mean(guess.x0, x_t, t, s)
        return Gaussian(mean, per_pixel(self.variance.log_var(self.process, t, s), x_t))


class OptimalVariance(Variance):
    """The variance of q(x_s | x_t) for x_0 ~ N(mean, std^2 I): with it every step is exact (Bao et al., 2022)."""

    def __init__(self, std: float = 0.5) -> None:
        self.std = std

    def log_var(self, process: ForwardProcess, t: Tensor, s: Tensor) -> Tensor:
        (signal_t, noise_t), (signal_s, _) = process.scales(t), process.scales(s)
        of_x0 = (self.std * noise_t) ** 2 / ((self.std * signal_t) ** 2 + noise_t**2)
        return (process.beta_tilde(t, s) + (signal_s * process.beta(t, s) / noise_t**2) ** 2 * of_x0).log()


def law(sampler: Sampler, denoiser: Denoises) -> tuple[float, float]:
    """Mean and standard deviation of x_0 for x_T ~ N(0, 1), without sampling.

    With a Gaussian denoiser and no clipping a step is x_s = offset + gain x_t + level z; three probes read its numbers.
    """
    probes = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    levels = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    mean, variance = 0.0, 1.0
    for t, s in pairwise(sampler.times(denoiser.process.steps)):
        at_t, at_s = torch.full((3,), t), torch.full((3,), s)
        z = levels if s else torch.zeros_like(levels)
        x_s = sampler.step(denoiser, probes, at_t, at_s, Condition(), lambda _, z=z: z)  # type: ignore[misc]
        offset, gain, level = x_s[0].item(), (x_s[1] - x_s[0]).item(), (x_s[2] - x_s[0]).item()
        mean, variance = offset + gain * mean, gain**2 * variance + level**2
    return mean, variance**0.5
