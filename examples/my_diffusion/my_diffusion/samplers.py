"""Samplers: classes with a method `step`, from x_t to x_s."""

from dataclasses import dataclass

from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.samplers import Sampler, Step


@dataclass(frozen=True, kw_only=True)
class Midpoint(Sampler):
    """DDIM with the x_0 estimate of the midpoint of each step: second order, two network calls."""

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        process, x_t, x0 = denoiser.process, step.x_t, step.estimate.x0
        if not step.last:
            middle = (step.t + step.s) // 2
            x_middle = process.ddim_update(x_t, x0, step.t, middle)
            x0 = self.estimate(denoiser, x_middle, middle, cond).x0
        return process.ddim_update(x_t, x0, step.t, step.s)
