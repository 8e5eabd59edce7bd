"""The exact distribution of the samples of a Gaussian denoiser, and the exact variational bound."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike, Estimate
from ddpm_lab.diffusion.process import ForwardProcess, as_times, per_pixel
from ddpm_lab.diffusion.samplers import Sampler, Step
from ddpm_lab.diffusion.variances import LearnedRange, Variance

MAX_PROBES = 2**19
"""Numbers in one batch of probes, about, which bounds the memory"""


def propagate(sampler: Sampler, denoiser: GaussianDenoiser) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and covariance (d, d) of the x_0 of `sampler`, without sampling.

    The covariance is a diagonal (d,) if that of the denoiser is one. Without clipping, a step is
    affine in the state of the chain and in each draw of noise, and acts on each principal axis
    alone. The state is x, then x_t and x_0 estimate of each of `Sampler.history` previous steps.
    Steps are probed in batches, except the first ones, which have fewer predecessors, and the last.
    """
    times = as_times(sampler.timesteps(denoiser.process))
    steps, dims = len(times) - 1, len(denoiser.mean)
    chunk, batched = max(1, MAX_PROBES // dims), min(sampler.history, steps - 1)
    cuts = sorted({*range(batched), *range(batched, steps - 1, chunk), steps - 1, steps})
    size = 1 + 2 * sampler.history
    mean = torch.zeros(size, dims, dtype=torch.float64)
    covariance = torch.zeros(size, size, dims, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    covariance[0, 0] = sampler.prior(denoiser.process, one)[0] ** 2
    for start, end in pairwise(cuts):
        for offset, matrix, noise in zip(
            *_affine(sampler, denoiser, times, start, end), strict=True
        ):
            mean = offset + (matrix * mean).sum(1)
            covariance = torch.einsum("ikd,kld,jld->ijd", matrix, covariance, matrix)
            covariance += torch.einsum("ikd,jkd->ijd", noise, noise)
    if denoiser.axes is None:
        return mean[0], covariance[0, 0]
    return denoiser.axes @ mean[0], (denoiser.axes * covariance[0, 0]) @ denoiser.axes.T


def _affine(
    sampler: Sampler, denoiser: GaussianDenoiser, times: Tensor, first: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the affine maps of steps `first` to `end` (exclusive), per principal axis.

    They are the offset (K, n, d), the matrix (K, n, n, d) and the response to each draw of noise
    (K, n, draws, d), for the n numbers of the state.
    """
    count, ancestors = end - first, min(first, sampler.history)
    unit = denoiser.from_axes(torch.ones_like(denoiser.mean))  # 1 on every axis
    size = 1 + 2 * sampler.history
    inputs = 1 + size  # probes: zeros, each number of the state, then one per draw of noise

    def respond(rows: int) -> tuple[Tensor, int]:
        state = torch.zeros(size, rows, count, len(unit), dtype=torch.float64)
        state[range(size), range(1, inputs)] = unit
        state = state.flatten(1, 2)
        draws = 0

        def noise(like: Tensor) -> Tensor:
            nonlocal draws
            z = torch.zeros(rows, count, len(unit), dtype=torch.float64)
            z[inputs + draws : inputs + draws + 1] = unit  # no row, while draws are being counted
            draws += 1
            return z.flatten(0, 1)

        def at(start: int) -> Tensor:
            return times[start : start + count].repeat(rows)

        previous = None
        for age in range(ancestors, 0, -1):
            x, x0 = state[2 * age - 1 : 2 * age + 1]
            t, s = at(first - age), at(first - age + 1)
            previous = Step(x, t, s, Estimate(x0), False, previous)
        arguments = (at(first), at(first + 1), previous, Condition(), noise)
        step = sampler.begin(denoiser, state[0], *arguments)
        x_s = sampler.step(denoiser, step, Condition(), noise)
        result = torch.stack([x_s, step.x_t, step.estimate.x0, *state[1:-2]][:size])
        return denoiser.to_axes(result.view(size, rows, count, -1)), draws

    _, draws = respond(inputs)
    response, _ = respond(inputs + draws)
    offset, slopes = response[:, 0], response[:, 1:] - response[:, :1]
    matrix, noise = (part.permute(2, 0, 1, 3) for part in slopes.split([size, draws], dim=1))
    return offset.transpose(0, 1), matrix, noise


def propagate_affine(
    sampler: Sampler, denoiser: DenoiserLike, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and covariance (d, d) of the x_0 of `shape`, without sampling.

    For estimates that are affine in x_t, such as a guided `GaussianDenoiser`, without clipping. A
    step of the sampler depends on x_t and on at most one draw of noise.
    """
    times, d = as_times(sampler.timesteps(denoiser.process)), math.prod(shape)
    zeros, unit = torch.zeros(d, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    probes = torch.cat([zeros[:1], unit, zeros]).view(-1, *shape)
    draw = torch.cat([zeros[:1], zeros, unit]).view(-1, *shape)
    mean, cov = zeros[0], sampler.prior(denoiser.process, unit) ** 2
    for t, s in pairwise(times.unbind()):
        arguments = (None, Condition(), lambda _: draw)
        step = sampler.begin(denoiser, probes, t, s, *arguments)
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
