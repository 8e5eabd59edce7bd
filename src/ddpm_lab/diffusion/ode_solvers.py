"""Second-order solvers of the probability-flow ODE.

In x / alpha and sigma / alpha the ODE is d(x / alpha) = eps d(sigma / alpha).
"""

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.samplers import Sampler, Step


class Heun(Sampler):
    """Heun's method (Karras et al., 2022, algorithm 1), with 2 K - 2 network calls in K > 1 steps.

    The first step and the step to the data are Euler steps. In the first step sigma / alpha may
    fall by orders of magnitude, which would amplify the small difference of the two x_0.
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


class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), with one network call per step.

    x_0 is extrapolated from the previous estimate. The first step and the step to the data are of
    first order.
    """

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        process, x0 = denoiser.process, step.estimate.x0
        if step.previous is not None and not step.last:
            times = (step.previous.t, step.t, step.s)
            start, middle, end = [0.5 * process.log_snr(time) for time in times]
            ratio = (end - middle) / (middle - start)
            x0 = x0 + per_pixel(ratio / 2, x0) * (x0 - step.previous.estimate.x0)
        # x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) x_0, h = step in log(alpha / sigma)
        (_, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(step.t), process.alpha_sigma(step.s)
        fall = torch.expm1(0.5 * (process.log_snr(step.t) - process.log_snr(step.s)))
        return per_pixel(sigma_s / sigma_t, x0) * step.x_t - per_pixel(alpha_s * fall, x0) * x0
