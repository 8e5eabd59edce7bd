"""Second-order solvers of the probability-flow ODE.

In x / alpha and sigma / alpha the ODE is d(x / alpha) = eps d(sigma / alpha).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.process import ForwardProcess, compute_once, per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.samplers import Sampler, Step
from ddpm_lab.utils.ranges import NonNegative, check_ranges


def heun_step(sampler: Sampler, denoiser: DenoiserLike, step: Step, cond: Condition) -> Tensor:
    """Return x_s, (B, ...), of a step of Heun's method, or of an Euler step to the data."""
    process = denoiser.process
    eps = process.eps(step.x_t, step.estimate.x0, step.t)
    x_s = process.diffuse(step.estimate.x0, eps, step.s)
    if step.last:
        return x_s
    end = process.eps(x_s, sampler.estimate(denoiser, x_s, step.s, cond).x0, step.s)
    mean = (eps + end) / 2
    return process.diffuse(process.x0(step.x_t, mean, step.t), mean, step.s)


def exponential_step(
    process: ForwardProcess, x: Tensor, x0: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) x_0, h = step in log(alpha / sigma).

    The exact solution from `x` (B, ...) at t for constant `x0` (Lu et al., 2022, eq. 9).
    """
    coef_xt, coef_x0 = _exponential_coefs(process, t, s)
    return per_pixel(coef_xt, x0) * x - per_pixel(coef_x0, x0) * x0


@compute_once
def _exponential_coefs(process: ForwardProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    (_, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    fall = torch.expm1(0.5 * (process.log_snr(t) - process.log_snr(s)))
    return sigma_s / sigma_t, alpha_s * fall


def extrapolate(process: ForwardProcess, step: Step) -> Tensor:
    """Return x_0 in the middle of a step, on the line through its estimate and the previous one.

    It is the estimate itself in the first step and in the step to the data.
    """
    x0 = step.estimate.x0
    if step.previous is None or step.last:
        return x0
    share = _middle(process, step.previous.t, step.t, step.s)
    return x0 + per_pixel(share, x0) * (x0 - step.previous.estimate.x0)


@compute_once
def _middle(process: ForwardProcess, *times: Tensor) -> Tensor:
    """Return half of the second of two steps in log(alpha / sigma), relative to the first."""
    start, middle, end = [0.5 * process.log_snr(time) for time in times]
    return (end - middle) / (middle - start) / 2


class Heun(Sampler):
    """Heun's method (Karras et al., 2022, algorithm 1), with 2 K - 2 network calls in K > 1 steps.

    The first step and the step to the data are Euler steps. In the first step sigma / alpha may
    fall by orders of magnitude, which would amplify the small difference of the two x_0.
    """

    deterministic = True

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        return heun_step(
            self, denoiser, step._replace(last=step.previous is None or step.last), cond
        )


@check_ranges
@dataclass(frozen=True, kw_only=True)
class EDM(Sampler):
    """Heun's method with churn, with 2 K - 1 network calls in K steps.

    Karras et al. (2022, algorithm 2); algorithm 1 without churn, which is deterministic.
    Before a step whose noise level sigma_t / alpha_t is in [`s_tmin`, `s_tmax`], noise raises the
    level by the factor 1 + min(`s_churn` / K, sqrt(2) - 1), at most to the level at T. `s_noise` is
    the standard deviation of that noise.
    """

    s_churn: NonNegative = 0.0
    s_tmin: NonNegative = 0.0
    s_tmax: NonNegative | None = None
    s_noise: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s_tmax is not None and self.s_tmin > self.s_tmax:
            raise ValueError(
                f"s_tmin={self.s_tmin:g} is above s_tmax={self.s_tmax:g}, so no step would add "
                "noise; try s_tmin=0.05 s_tmax=50, or s_churn=0"
            )

    @property
    def deterministic(self) -> bool:
        return self.s_churn == 0

    def begin(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        previous: Step | None,
        cond: Condition,
        noise: NoiseSampler,
    ) -> Step:
        if self.s_churn:
            x, t = self._add_noise(denoiser.process, x, t, noise)
        return super().begin(denoiser, x, t, s, previous, cond, noise)

    def _add_noise(
        self, process: ForwardProcess, x: Tensor, t: Tensor, noise: NoiseSampler
    ) -> tuple[Tensor, Tensor]:
        """Return `x` with the noise of the step from `t`, and its higher time."""
        steps = self.steps or len(self.timesteps(process)) - 1
        gamma = min(self.s_churn / steps, math.sqrt(2) - 1)
        level, t = process.noise_level(t), t.double()
        inside = level >= self.s_tmin
        if self.s_tmax is not None:
            inside &= level <= self.s_tmax
        raised = torch.where(inside, torch.maximum(process.time((1 + gamma) * level), t), t)
        noisier = process.rediffuse(x, self.s_noise * noise(x), t, raised)
        return torch.where(per_pixel(raised > t, x).bool(), noisier, x), raised

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        alpha, _ = denoiser.process.alpha_sigma(step.t)  # 0: there is no slope of noise alone
        return heun_step(self, denoiser, step._replace(last=step.last or not alpha.any()), cond)


class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), with one network call per step.

    x_0 is extrapolated from the previous estimate. The first step and the step to the data are of
    first order.
    """

    deterministic = True

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        x0 = extrapolate(denoiser.process, step)
        return exponential_step(denoiser.process, step.x_t, x0, step.t, step.s)
