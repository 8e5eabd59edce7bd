"""Solvers of the probability-flow ODE, of second order. In x / signal and sigma = noise / signal it reads dx = eps
dsigma.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoises
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import Noise
from ddpm_lab.diffusion.samplers import Sampler, Step


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Two evaluations a step, the second at its end (Karras et al., 2022, algorithm 1), so 2 K - 2 calls of the network
    in K > 1 steps: the step to the data is Euler's, and so is the first. There noise / signal may fall by orders of
    magnitude at once, and the mean of two eps carries the small difference of two x_0 multiplied by that.
    """

    def step(self, denoiser: Denoises, step: Step, cond: Condition, noise: Noise) -> Tensor:
        process = denoiser.process
        eps = process.eps(step.x_t, step.guess.x0, step.t)
        x_s = process.diffuse(step.guess.x0, eps, step.s)
        if step.last or step.before is None:
            return x_s
        end = process.eps(x_s, self.guess(denoiser, x_s, step.s, cond).x0, step.s)
        mean = (eps + end) / 2
        return process.diffuse(process.x0(step.x_t, mean, step.t), mean, step.s)


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M): one evaluation a step, the trend of x_0 from the step before (Lu et al., 2022, algorithm 2).
    The first step and the step to the data are of first order.
    """

    def step(self, denoiser: Denoises, step: Step, cond: Condition, noise: Noise) -> Tensor:
        process, x0 = denoiser.process, step.guess.x0
        if step.before is not None and not step.last:
            half_log_snr = [0.5 * process.log_snr(time) for time in (step.before.t, step.t, step.s)]
            ratio = (half_log_snr[2] - half_log_snr[1]) / (half_log_snr[1] - half_log_snr[0])
            x0 = x0 + per_pixel(ratio / 2, x0) * (x0 - step.before.guess.x0)
        # x_s = (noise_s / noise_t) x_t - signal_s (exp(-h) - 1) x0, with h the step in log(signal / noise)
        (_, noise_t), (signal_s, noise_s) = process.scales(step.t), process.scales(step.s)
        fall = torch.expm1(0.5 * (process.log_snr(step.t) - process.log_snr(step.s)))
        return per_pixel(noise_s / noise_t, x0) * step.x_t - per_pixel(signal_s * fall, x0) * x0
