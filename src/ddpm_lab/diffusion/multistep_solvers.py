"""Multistep solvers with one network call per step. The step to the data is of first order."""

from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.ode_solvers import exponential_step, extrapolate
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.diffusion.rng import NoiseSampler
from ddpm_lab.diffusion.samplers import Sampler, Step


class DPMSolverSDE(Sampler):
    """SDE-DPM-Solver++(2M) (Lu et al., 2022; diffusers' "sde-dpmsolver++").

    An ancestral step with variance beta_tilde at the extrapolated x_0 of DPM-Solver++(2M).
    """

    min_steps = 3

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        process, x_t = denoiser.process, step.x_t
        mean = process.posterior_mean(extrapolate(process, step), x_t, step.t, step.s)
        if step.last:
            return mean
        return mean + per_pixel(process.beta_tilde(step.t, step.s).sqrt(), x_t) * noise(x_t)


class DPMSolver3M(Sampler):
    """DPM-Solver++(3M): a multistep solver of order 3 (Lu et al., 2022).

    x_0 is extrapolated by a parabola in log(alpha / sigma) through the last three estimates. The
    first two steps are of order 1 and 2. The code of Lu et al. and diffusers have half of the term
    with the curvature, which is of order 2.
    """

    deterministic = True
    history = 2
    min_steps = 4

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        process, x0 = denoiser.process, step.estimate.x0
        if step.last or step.previous is None or step.previous.previous is None:
            return exponential_step(process, step.x_t, extrapolate(process, step), step.t, step.s)
        one, two = step.previous, step.previous.previous
        h_2, h_1, h = _log_steps(process, two.t, one.t, step.t, step.s)
        # Newton's divided differences over steps relative to h.
        slope = per_pixel(h / h_1, x0) * (x0 - one.estimate.x0)
        past_slope = per_pixel(h / h_2, x0) * (one.estimate.x0 - two.estimate.x0)
        curvature = per_pixel(h / (h_1 + h_2), x0) * (slope - past_slope)
        slope = slope + per_pixel(h_1 / (h_1 + h_2), x0) * (slope - past_slope)
        fall, (alpha_s, _) = torch.expm1(-h), process.alpha_sigma(step.s)
        return (
            exponential_step(process, step.x_t, x0, step.t, step.s)
            + per_pixel(alpha_s * (fall / h + 1), x0) * slope
            + per_pixel(alpha_s * (1 - 2 * (fall + h) / h**2), x0) * curvature
        )


class UniPC(Sampler):
    """UniPC of order 2 with B(h) = exp(h) - 1, "bh2" (Zhao et al., 2023, algorithms 5 and 6).

    The predictor is DPM-Solver++(2M). The corrector UniC repeats the previous step with the
    estimate at its end, at no further network call.
    """

    deterministic = True
    history = 2
    min_steps = 3

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
        step = super().begin(denoiser, x, t, s, previous, cond, noise)
        return step if previous is None else step._replace(x_t=_correct(denoiser.process, step))

    def step(
        self, denoiser: DenoiserLike, step: Step, cond: Condition, noise: NoiseSampler
    ) -> Tensor:
        x0 = extrapolate(denoiser.process, step)
        return exponential_step(denoiser.process, step.x_t, x0, step.t, step.s)


def _correct(process: ForwardProcess, step: Step) -> Tensor:
    """Return x_t of `step`, (B, ...), by UniC from the step before it."""
    start = step.previous
    assert start is not None
    x0, end = start.estimate.x0, step.estimate.x0
    (h,) = _log_steps(process, start.t, step.t)
    fall = torch.expm1(-h)
    change, share = 0.0 * x0, torch.full_like(h, 0.5)
    if start.previous is not None:
        (h_1,) = _log_steps(process, start.previous.t, start.t)
        # The two moments of the weights that make the corrector of order 3.
        first = (fall / -h - 1) / fall
        second = 2 * ((fall / -h - 1) / -h - 0.5) / fall
        weight = (first - second) / (1 + h_1 / h)
        share = first - weight
        change = per_pixel(weight * h / h_1, x0) * (x0 - start.previous.estimate.x0)
    change = change + per_pixel(share, x0) * (end - x0)
    alpha, _ = process.alpha_sigma(step.t)
    x_t = exponential_step(process, start.x_t, x0, start.t, step.t)
    return x_t - per_pixel(alpha * fall, x0) * change


def _log_steps(process: ForwardProcess, *times: Tensor) -> list[Tensor]:
    """Return the steps in log(alpha / sigma) between consecutive `times`."""
    logs = [0.5 * process.log_snr(time) for time in times]
    return [end - start for start, end in pairwise(logs)]
