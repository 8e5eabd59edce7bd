"""The exact distribution of the samples of a Gaussian denoiser, and the exact variational bound."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.process import ForwardProcess, per_pixel
from ddpm_lab.diffusion.samplers import Sampler, Step
from ddpm_lab.diffusion.variances import LearnedRange, Variance

MAX_PROBES = 2**19
"""Numbers in one batch of probes, about, which bounds the memory"""


def propagate(sampler: Sampler, denoiser: GaussianDenoiser) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and covariance (d, d) of the x_0 of `sampler`, without sampling.

    The covariance is a diagonal (d,) if that of the denoiser is one. Without clipping, a step is
    affine in x_t, in the x before it (for multistep solvers) and in each draw of noise, and acts on
    each principal axis alone. Steps are probed in batches, except the first, which has no
    predecessor, and the last.
    """
    times = sampler.timesteps(denoiser.process.steps)
    last = max(len(times) - 2, 1)
    cuts = [0, *range(1, last, max(1, MAX_PROBES // len(denoiser.mean))), last, len(times) - 1]
    mean, mean_previous = torch.zeros(2, len(denoiser.mean), dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    var, cov, var_previous = sampler.prior(denoiser.process, one)[0] ** 2, mean, mean
    for start, end in pairwise(cuts):
        coefficients = _affine(sampler, denoiser, times, start, end) if start < end else ()
        for offset, a, b, noise_var in zip(*coefficients, strict=True):
            # x_s = offset + a x_t + b x_previous + noise of variance noise_var
            mean, mean_previous = offset + a * mean + b * mean_previous, mean
            var_s = a**2 * var + 2 * a * b * cov + b**2 * var_previous + noise_var
            var, cov, var_previous = var_s, a * var + b * cov, var
    if denoiser.axes is None:
        return mean, var
    return denoiser.axes @ mean, (denoiser.axes * var) @ denoiser.axes.T


def _affine(
    sampler: Sampler, denoiser: GaussianDenoiser, times: Sequence[int], first: int, end: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the affine maps of steps `first` to `end` (exclusive), (K, d) each per principal axis.

    They are the offset, the coefficients of x_t and of the x before it, and the noise variance.
    """
    t, s, u = (torch.tensor(times[max(first + i, 0) :][: end - first]) for i in (0, 1, -1))
    unit = denoiser.from_axes(torch.ones_like(denoiser.mean))  # 1 on every axis
    inputs = 3  # probes: zeros, x_t, the x before it, then one per draw of noise

    def respond(rows: int) -> tuple[Tensor, int]:
        x, x_previous = torch.zeros(2, rows, len(t), len(unit), dtype=torch.float64)
        x[1], x_previous[2] = unit, unit
        draws = 0

        def noise(like: Tensor) -> Tensor:
            nonlocal draws
            z = torch.zeros(rows, len(t), len(unit), dtype=torch.float64)
            z[inputs + draws : inputs + draws + 1] = unit  # no row, while draws are being counted
            draws += 1
            return z.flatten(0, 1)

        def step(x: Tensor, t: Tensor, s: Tensor, previous: Step | None) -> Step:
            x, t, s = x.flatten(0, 1), t.repeat(rows), s.repeat(rows)
            estimate = sampler.estimate(denoiser, x, t, Condition())
            return Step(x, t, s, estimate, end == len(times) - 1, previous)

        probe = step(x, t, s, step(x_previous, u, t, None) if first else None)
        x_s = sampler.step(denoiser, probe, Condition(), noise)
        return denoiser.to_axes(x_s.view_as(x)), draws

    _, draws = respond(inputs)
    response, _ = respond(inputs + draws)
    offset, slopes = response[0], response[1:] - response[0]
    return offset, slopes[0], slopes[1], slopes[2:].square().sum(0)


def propagate_affine(
    sampler: Sampler, denoiser: DenoiserLike, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and covariance (d, d) of the x_0 of `shape`, without sampling.

    For estimates that are affine in x_t, such as a guided `GaussianDenoiser`, without clipping. A
    step of the sampler depends on x_t and on at most one draw of noise.
    """
    times, d = torch.tensor(sampler.timesteps(denoiser.process.steps)), math.prod(shape)
    zeros, unit = torch.zeros(d, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    probes = torch.cat([zeros[:1], unit, zeros]).view(-1, *shape)
    draw = torch.cat([zeros[:1], zeros, unit]).view(-1, *shape)
    mean, cov = zeros[0], sampler.prior(denoiser.process, unit) ** 2
    for t, s in pairwise(times.unbind()):
        estimate = sampler.estimate(denoiser, probes, t, Condition())
        step = Step(probes, t, s, estimate, int(s) == 0, None)
        response = sampler.step(denoiser, step, Condition(), lambda _: draw).flatten(1)
        slopes, spread = (response[1:] - response[0]).split(d)
        mean, cov = response[0] + mean @ slopes, slopes.T @ cov @ slopes + spread.T @ spread
    return mean, cov


def analytic_vlb(
    process: ForwardProcess,
    variance: Variance,
    times: Sequence[int],
    mse: Tensor,
    second_moment: float,
    variance_output: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the expected bound of real-valued data in bits/dim, for the chain `times`.

    "L_T" is (), "terms" (K,). The last term is -log p(x_0 | x_t), a density. The bound depends on
    the data by `second_moment` E[x_0^2] and on the denoiser by `mse` (T + 1,), both per dimension,
    because the variances are equal in all dimensions. `variance_output` (K,) is the network output
    for a learned variance at each step.
    """
    t, s = torch.tensor([*pairwise(times)], device=mse.device).T
    alpha, sigma = process.alpha_sigma(t[:1])
    scale = process.scale(t[:1])
    power = (alpha**2 * second_moment + sigma**2) / scale**2
    prior = 0.5 * (power - 1 - 2 * (sigma / scale).log())
    log_var = variance.log_var(process, variance_output, mse[t], t, s)
    mean_error = process.posterior_coef_x0(t, s) ** 2 * mse[t]
    ratio = process.beta_tilde(t, s).clamp(min=1e-300).log() - log_var
    kl = 0.5 * (torch.expm1(ratio) - ratio + mean_error * (-log_var).exp())
    decoder = 0.5 * (math.log(2 * math.pi) + log_var + mse[t] * (-log_var).exp())
    return {"L_T": prior[0] / math.log(2), "terms": torch.where(s == 0, decoder, kl) / math.log(2)}


def optimal_variance_output(
    process: ForwardProcess, optimum: Variance, times: Sequence[int]
) -> Tensor:
    """Return the outputs in [-1, 1] with which `LearnedRange` is nearest to `optimum`, (K,)."""
    t, s = torch.tensor([*pairwise(times)], device=process.table.device).T
    like = torch.zeros(len(t), dtype=torch.float64, device=process.table.device)
    low, high = (LearnedRange().log_var(process, like + end, like, t, s) for end in (-1, 1))
    log_var = optimum.log_var(process, None, like, t, s)
    output = 2 * (log_var - low) / (high - low) - 1
    return output.nan_to_num(0).clamp(-1, 1)  # the single step from T to 0 has an empty range


class OptimalRange(Variance):
    """`LearnedRange` at `optimal_variance_output`: `optimum`, clamped to the range."""

    def __init__(self, optimum: Variance) -> None:
        self.optimum = optimum

    def log_var(
        self, process: ForwardProcess, output: Tensor | None, like: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        low, high = process.log_beta_tilde(t, s), process.beta(t, s).log()
        return per_pixel(self.optimum.log_var(process, None, low, t, s).clamp(low, high), like)
