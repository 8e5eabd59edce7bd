"""Progressive distillation: a student that makes two steps of its teacher in one."""

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import BaseDenoiser, Denoiser
from ddpm_lab.diffusion.guidance import check_compatible
from ddpm_lab.diffusion.objectives import NoisedBatch, Objective
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.diffusion.timestep_samplers import TimestepSampler
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.utils.errors import UserError

SPACING = "trailing"
"""Spacing of all chains: that of half the steps is a part of that of all"""


class Distillation(Objective):
    """max(SNR, 1) |target - x_0 estimate|^2 (Salimans & Ho, 2022, algorithm 2).

    From the target, one DDIM step leads where two steps of `teacher` lead. Times are those of the
    student's chain of `steps` steps; the teacher's chain has twice as many.

    Raises ValueError if the chains do not fit T.
    """

    fits_sampler = True

    def __init__(self, teacher: BaseDenoiser, steps: int, clip: float | None = 1.0) -> None:
        self.teacher, self.sampler = teacher, DDIM(clip=clip)
        process = teacher.process
        if 2 * steps > process.steps:
            raise ValueError(f"steps={steps} must be at most T / 2 = {process.steps // 2}")
        chain = timesteps(process.steps, 2 * steps, SPACING)
        self.chain = torch.tensor(chain[::-1], device=process.table.device)

    def check(self, denoiser: Denoiser, timestep_sampler: TimestepSampler) -> None:
        super().check(denoiser, timestep_sampler)
        try:
            check_compatible("the teacher", self.teacher, denoiser)
        except ValueError as error:
            raise UserError(f"objective=distillation: {error}") from None

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        process = denoiser.process
        index = (batch.t - 1) * (len(self.chain) // 2) // process.steps
        s, middle, t = (self.chain[2 * index + i] for i in range(3))
        x_t = process.diffuse(batch.x0, batch.eps, t)
        with torch.no_grad():
            target = self.target(x_t, t, middle, s, batch.cond)
        error = denoiser(x_t, t, batch.cond).x0 - target
        weight = process.log_snr(t).exp().clamp(min=1)
        return weight.to(error.dtype) * error.square().flatten(1).mean(1)

    def target(self, x_t: Tensor, t: Tensor, middle: Tensor, s: Tensor, cond: Condition) -> Tensor:
        """Return the x_0 (B, ...) of a DDIM step from t to s that equals the teacher's two."""
        process = self.teacher.process
        x_0 = self.sampler.estimate(self.teacher, x_t, t, cond).x0
        x_m = process.ddim_update(x_t, x_0, t, middle)
        x_0 = self.sampler.estimate(self.teacher, x_m, middle, cond).x0
        x_s = process.ddim_update(x_m, x_0, middle, s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
        ratio = sigma_s / sigma_t
        scale = 1 / (alpha_s - ratio * alpha_t)
        return per_pixel(scale, x_s) * (x_s - per_pixel(ratio, x_t) * x_t)
