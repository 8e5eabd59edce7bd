"""Progressive distillation: a student that makes two steps of its teacher in one."""

import logging

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import BaseDenoiser, Denoiser
from ddpm_lab.diffusion.guidance import check_compatible
from ddpm_lab.diffusion.objectives import NoisedBatch, Objective
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.diffusion.samplers import DDIM, Sampler
from ddpm_lab.diffusion.timestep_samplers import TimestepSampler
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.utils.errors import UserError, choice_name
from ddpm_lab.utils.ranges import Count, check_ranges

LOG = logging.getLogger(__name__)
SPACING = "trailing"
"""Spacing of all chains: that of half the steps is a part of that of all"""


def fits(sampler: Sampler, process: ForwardProcess, steps: int) -> bool:
    """Return True if `sampler` makes the chain of a student of `steps` steps, without noise."""
    chain = timesteps(process.steps, steps, SPACING)
    deterministic = isinstance(sampler, DDIM) and sampler.eta == 0
    return deterministic and [*sampler.timesteps(process)] == chain


def warn_unless_fits(sampler: Sampler, process: ForwardProcess, steps: int) -> bool:
    """Log a warning unless `sampler` makes the chain of a student; return True if it was logged."""
    if fits(sampler, process, steps):
        return False
    LOG.warning(
        f"warning: this model was distilled for sampler=ddim sampler.eta=0 sampler.steps={steps} "
        f"sampler.spacing={SPACING}; it makes worse samples with others"
    )
    return True


def _is_half(T: int, steps: int) -> bool:
    """Return True if every second time of the teacher's chain is a time of the student's."""
    times = timesteps(T, steps, SPACING)
    return 2 * steps <= T and timesteps(T, 2 * steps, SPACING)[::2] == times


class Distillation(Objective):
    """max(SNR, 1) |target - x_0 estimate|^2 (Salimans & Ho, 2022, algorithm 2).

    From the target, one DDIM step leads where two steps of `teacher` lead. Times are those of the
    student's chain of `steps` steps; the teacher's chain has twice as many.

    Raises ValueError if the chains do not fit T.
    """

    fits_sampler = True
    variance_hint = "variance=beta_tilde"

    @check_ranges
    def __init__(self, teacher: BaseDenoiser, steps: Count, clip: float | None = 1.0) -> None:
        self.teacher, self.sampler = teacher, DDIM(clip=clip)
        T, device = teacher.process.steps, teacher.process.table.device
        if not _is_half(T, min(steps, T)):
            nearest = next((n for n in range(min(steps, T // 2), 0, -1) if _is_half(T, n)), 1)
            raise ValueError(
                f"steps={steps} must be at most T / 2 = {T // 2}, with times that are a part of "
                f"those of twice the steps; try steps={nearest}"
            )
        self.steps = steps
        self.chain = torch.tensor(timesteps(T, 2 * steps, SPACING)[::-1], device=device)

    def check(
        self, denoiser: Denoiser, timestep_sampler: TimestepSampler, sampler: Sampler
    ) -> None:
        super().check(denoiser, timestep_sampler, sampler)
        try:
            check_compatible("the teacher", self.teacher, denoiser)
        except ValueError as error:
            raise UserError(f"objective=distillation: {error}") from None
        if not fits(sampler, denoiser.process, self.steps):
            options = " ".join(
                f"sampler.{key}={getattr(sampler, key)}"
                for key in ("eta", "steps", "spacing")
                if hasattr(sampler, key)
            )
            raise UserError(
                f"sampler={choice_name(sampler)} {options} is not the chain that "
                "objective=distillation trains, DDIM without noise; try sampler=ddim sampler.eta=0 "
                f"sampler.steps={self.steps} sampler.spacing={SPACING}"
            )

    def __call__(self, denoiser: Denoiser, batch: NoisedBatch) -> Tensor:
        process = denoiser.process
        index = (batch.t - 1) * self.steps // process.steps
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
