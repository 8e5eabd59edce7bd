"""Solvers of the probability-flow ODE, of second order. In x / signal and sigma = noise / signal it reads dx = eps
dsigma.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.samplers import Sampler, Step


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Two evaluations a step, the second at its end (Karras et al., 2022, algorithm 1), so 2 K - 2 calls of the network
    in K > 1 steps: the step to the data is Euler's, and so is the first. There noise / signal may fall by orders of
    magnitude at once, and the mean of two eps carries the small difference of two x_0 multiplied by that.
    """

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        process = denoiser.process
        eps = process.eps(step.x_t, step.estimate.x0, step.t)
        x_s = process.diffuse(step.estimate.x0, eps, step.s)
        if step.last or step.previous is None:
            return x_s
        end = process.eps(x_s, self.estimate(denoiser, x_s, step.s, cond).x0, step.s)
        mean = (eps + end) / 2
        return process.diffuse(process.x0(step.x_t, mean, step.t), mean, step.s)


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M): one evaluation a step, the trend of x_0 from the step before (Lu et al., 2022, algorithm 2).
    The first step and the step to the data are of first order.
    """

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        process, x0 = denoiser.process, step.estimate.x0
        if step.previous is not None and not step.last:
            half_log_snr = [
                0.5 * process.log_snr(time) for time in (step.previous.t, step.t, step.s)
            ]
            ratio = (half_log_snr[2] - half_log_snr[1]) / (half_log_snr[1] - half_log_snr[0])
            x0 = x0 + per_pixel(ratio / 2, x0) * (x0 - step.previous.estimate.x0)
        # x_s = (noise_s / noise_t) x_t - signal_s (exp(-h) - 1) x0, with h the step in log(signal / noise)
        (_, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(step.t), process.alpha_sigma(step.s)
        fall = torch.expm1(0.5 * (process.log_snr(step.t) - process.log_snr(step.s)))
        return per_pixel(sigma_s / sigma_t, x0) * step.x_t - per_pixel(alpha_s * fall, x0) * x0
