"""Samplers with Langevin dynamics."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, Estimate
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.samplers import Sampler, Step
from ddpm_lab.utils.ranges import Count, check_ranges


@check_ranges
@dataclass(frozen=True, kw_only=True)
class _LangevinSampler(Sampler):
    """Langevin steps at fixed t: x + a score + sqrt(2 a) z, with a = step_size sigma_t^2."""

    corrections: Count = 1
    step_size: Annotated[float, Gt(0), Lt(2)] = 0.1  # the steps diverge from 2 on
    history: ClassVar[int] = 0

    def correct(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        t: Tensor,
        cond: Condition,
        noise: NoiseSampler,
        estimate: Estimate | None = None,
    ) -> Tensor:
        """Return `x` (B, ...) after the corrections at t. An `estimate` of x saves a call."""
        step = self.step_size * denoiser.process.alpha_sigma(t)[1] ** 2
        for _ in range(self.corrections):
            if estimate is None:
                estimate = self.estimate(denoiser, x, t, cond)
            score = denoiser.process.score(x, estimate.x0, t)
            x = x + per_pixel(step, x) * score + per_pixel((2 * step).sqrt(), x) * noise(x)
            estimate = None
        return x


class Langevin(_LangevinSampler):
    """Annealed Langevin dynamics (Song & Ermon, 2019, algorithm 1).

    x is corrected at each noise level, rescaled between levels, and denoised after the last.

    Args:
        corrections: Number of Langevin steps at each level.
        step_size: a / sigma_t^2 of the step x + a score + sqrt(2 a) z, above 0 and below 2.
        others: See `Sampler`.
    """

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        x = self.correct(denoiser, step.x_t, step.t, cond, noise, step.estimate)
        if step.last:
            return self.estimate(denoiser, x, step.t, cond).x0
        process, t, s = denoiser.process, step.t, step.s
        (alpha_t, _), (alpha_s, _) = map(process.alpha_sigma, (t, s))
        to_prior = process.scale(s) / process.scale(t)  # from an x_t without signal
        return per_pixel(torch.where(alpha_t > 0, alpha_s / alpha_t, to_prior), x) * x


class PredictorCorrector(_LangevinSampler):
    """An ancestral step, then Langevin corrections at s.

    Song et al. (2021, SDE, algorithms 2 to 5). See `Langevin` for the arguments.
    """

    uses_reverse = True

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        reverse = denoiser.reverse(step.estimate, step.x_t, step.t, step.s, cond)
        if step.last:
            return reverse.mean
        return self.correct(denoiser, reverse.rsample(noise(step.x_t)), step.s, cond, noise)
