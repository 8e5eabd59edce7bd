"""Samplers that follow the score by Langevin dynamics."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, Estimate
from ddpm_lab.diffusion.process import per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.samplers import Sampler, Step


@dataclass(frozen=True, kw_only=True)
class _LangevinCorrected(Sampler):
    """`corrections` steps of Langevin dynamics at a level: x + a score + sqrt(2 a) z, a = `step_size` noise_t^2."""

    corrections: int = 1
    step_size: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corrections < 1:
            raise ValueError(f"corrections must be at least 1 (got {self.corrections})")
        if not 0 < self.step_size < 2:
            raise ValueError(
                f"step_size must lie between 0 and 2, where it diverges (got {self.step_size:g}); try 0.1"
            )

    def correct(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        t: Tensor,
        cond: Condition,
        noise: NoiseSampler,
        estimate: Estimate | None = None,
    ) -> Tensor:
        """`x` (B, ...) after the corrections at level `t`; `guess` is that of x, where it is known."""
        step = self.step_size * denoiser.process.alpha_sigma(t)[1] ** 2
        for i in range(self.corrections):
            known = (
                estimate if estimate is not None and i == 0 else self.estimate(denoiser, x, t, cond)
            )
            score = denoiser.process.score(x, known.x0, t)
            x = x + per_pixel(step, x) * score + per_pixel((2 * step).sqrt(), x) * noise(x)
        return x


@dataclass(frozen=True, kw_only=True)
class Langevin(_LangevinCorrected):
    """Annealed Langevin dynamics (Song & Ermon, 2019, algorithm 1): corrections at each level, from level to level x is
    only rescaled, and from the last it is denoised.
    """

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        x = self.correct(denoiser, step.x_t, step.t, cond, noise, step.estimate)
        if step.last:
            return self.estimate(denoiser, x, step.t, cond).x0
        (alpha_t, _), (alpha_s, _) = (
            denoiser.process.alpha_sigma(step.t),
            denoiser.process.alpha_sigma(step.s),
        )
        return per_pixel(alpha_s / alpha_t, x) * x


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(_LangevinCorrected):
    """An ancestral step, then Langevin corrections where it arrives (Song et al., 2021, algorithms 2 to 5)."""

    uses_reverse: ClassVar[bool] = True

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        reverse = denoiser.reverse(step.estimate, step.x_t, step.t, step.s, cond)
        return (
            reverse.mean
            if step.last
            else self.correct(denoiser, reverse.rsample(noise(step.x_t)), step.s, cond, noise)
        )
