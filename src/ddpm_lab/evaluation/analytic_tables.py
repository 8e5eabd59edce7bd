"""Analytic tier: samplers and bounds on data with an exact denoiser, without a network."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.analytic_denoisers import (
    GaussianDenoiser,
    Mixture,
    MixtureDenoiser,
    analytic_vlb,
    optimal_variance_output,
    propagate,
)
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.ode_solvers import DPMSolver, Heun
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.diffusion.samplers import DDIM, DDPM, Sampler
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde, LearnedRange, Variance

Rows = dict[str, list[float]]
"""Values by row, one for each number of steps"""


class AnalyticData(NamedTuple):
    """Data with an exact denoiser."""

    name: str
    denoiser: Callable[[Variance], GaussianDenoiser | MixtureDenoiser]
    mse: Tensor
    """E|x_0 - E[x_0 | x_t]|^2 per dimension, (T + 1,)"""
    second_moment: float
    entropy: float | None
    """Bits/dim; None for a finite set, which has no density"""
    draw: Callable[[int, torch.Generator], Tensor]
    """Return points of the data, (count, d)"""
    mixture: Mixture | None = None
    """The distribution with labels; None for Gaussian data"""


def gaussian_data(
    process: ForwardProcess, mean: Sequence[float], covariance: Sequence[Sequence[float]]
) -> AnalyticData:
    """Return data from N(mean, covariance).

    Raises ValueError unless the covariance is symmetric, positive definite and of matching size.
    """
    try:
        m, c = (torch.tensor(part, dtype=torch.float64) for part in (mean, covariance))
    except (TypeError, ValueError):  # not numbers, or rows of different lengths
        raise ValueError(
            f"mean={[*mean]} and covariance={[*covariance]} must be a list of numbers and a square "
            "matrix; try covariance=[[0.25]] mean=[0]"
        ) from None
    if (
        c.shape != (len(m), len(m))
        or not torch.equal(c, c.T)
        or torch.linalg.eigvalsh(c).min() <= 0
    ):
        raise ValueError(
            f"covariance={[*map(list, covariance)]} must be a symmetric, positive definite matrix "
            f"of the size of mean={[*mean]}; try covariance=[[0.25]] mean=[0]"
        )
    denoiser = GaussianDenoiser(process, BetaTilde(), m, c)
    factor = torch.linalg.cholesky(c)
    return AnalyticData(
        f"N(mean, covariance) in {len(m)} dimension{'s' if len(m) > 1 else ''}",
        lambda variance: GaussianDenoiser(process, variance, m, c),
        denoiser.mse(),
        denoiser.second_moment(),
        denoiser.entropy(),
        lambda count, generator: (
            m + torch.randn(count, len(m), dtype=torch.float64, generator=generator) @ factor.T
        ),
    )


def mixture_data(
    process: ForwardProcess,
    data: DataModule,
    count: int,
    seed: int,
    times: Iterable[int] | None = None,
    conditional: bool = False,
) -> AnalyticData:
    """Return the mixture of `data`, or the finite set of its first `count` training samples.

    `conditional`: Whether the denoiser takes labels.
    `times`: Times at which the denoiser's error is computed (None: all); it is 0 at the others.
    For a finite set, the error is a mean over at most 512 samples.
    """
    train = data.train.select(slice(count))
    x0 = train.x0.double().flatten(1)
    even = torch.full((len(x0),), 1 / len(x0), dtype=torch.float64)
    mixture = data.mixture or Mixture(x0, even, 0.0, train.labels)
    denoised = mixture if conditional else mixture._replace(labels=None)
    denoiser = MixtureDenoiser(process, BetaTilde(), denoised)
    all_times = range(1, process.steps + 1) if times is None else sorted({*times} - {0})
    bar = tqdm(all_times, desc="errors of the exact denoiser", leave=False, disable=None)
    mse: Tensor
    entropy: float | None
    if mixture.std:
        mse, entropy = _integrate(denoiser, mixture, bar)
        name = f"the distribution of {data.name}"
    else:
        mse, entropy = _estimate_mse(denoiser, mixture, bar, count, seed), None
        name = f"{len(x0)} points of {data.name}, as a finite set"
    return AnalyticData(
        name,
        lambda variance: MixtureDenoiser(process, variance, denoised),
        mse,
        mixture.second_moment(),
        entropy,
        lambda count, generator: mixture.sample(count, generator)[0],
        mixture,
    )


def _integrate(
    denoiser: MixtureDenoiser, mixture: Mixture, times: Iterable[int]
) -> tuple[Tensor, float]:
    """Return the error at `times`, (T + 1,), and the entropy of a mixture in bits/dim.

    Both use Gauss-Hermite quadrature around every mean. Both are conditional on the label if the
    denoiser is.
    """
    count, dims = mixture.means.shape
    nodes, weights = (
        torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(_nodes(dims))
    )
    z = torch.cartesian_prod(*[nodes] * dims).view(-1, dims)
    share = torch.cartesian_prod(*[weights / weights.sum()] * dims).view(-1, dims).prod(1)
    label = None if mixture.labels is None else mixture.labels.repeat_interleave(len(z))
    process = denoiser.process

    def around(t: int) -> tuple[Tensor, Tensor, Condition]:
        alpha, sigma, _, _ = process.table[t]
        x_t = alpha * mixture.means[:, None] + torch.hypot(alpha * mixture.std, sigma) * z
        return x_t.flatten(0, 1), torch.full((len(z) * count,), t), Condition(label)

    def mean(values: Tensor) -> Tensor:
        return mixture.weights @ (values.view(count, -1) @ share)

    mse = torch.zeros(process.steps + 1, dtype=torch.float64)
    for t in times:
        mse[t] = mean(denoiser.mse(*around(t)))
    # H(x) = H(x | k) + H(k) - H(k | x) of the component k, conditional on the label if used.
    same_label = torch.ones(count, count, dtype=torch.bool)
    if denoiser.labels is not None:
        same_label = denoiser.labels[:, None] == denoiser.labels
    weights = mixture.weights
    prior = weights @ (same_label.double() @ weights / weights).log()
    posterior = mean(torch.special.entr(denoiser.logits(*around(0)).softmax(1)).sum(1))
    component = 0.5 * math.log(2 * math.pi * math.e * mixture.std**2)
    return mse, (component + (prior - posterior).item() / dims) / math.log(2)


def _nodes(dims: int) -> int:
    """Return the nodes per dimension, for about 600 in total."""
    return min(32, max(2, int(600 ** (1 / dims))))


def _estimate_mse(
    denoiser: MixtureDenoiser, mixture: Mixture, times: Iterable[int], count: int, seed: int
) -> Tensor:
    """Estimate the error at `times`, (T + 1,)."""
    generator = make_generator(seed, 1)
    points, label = mixture.labelled(min(count, 512), generator)
    mse = torch.zeros(denoiser.process.steps + 1, dtype=torch.float64)
    for t in times:
        time = torch.full((len(points),), t)
        eps = torch.randn(points.shape, dtype=torch.float64, generator=generator)
        estimate = denoiser(denoiser.process.diffuse(points, eps, time), time, Condition(label))
        mse[t] = (estimate.x0 - points).square().mean()
    return mse


def _samplers(optimum: Variance) -> dict[str, tuple[Callable[..., Sampler], Variance]]:
    """Return the rows of DDIM's table 1, and later samplers."""

    etas = {
        f"DDIM eta={eta:g}": (partial(DDIM, eta=eta), BetaTilde()) for eta in (0.0, 0.2, 0.5, 1.0)
    }
    return {
        **etas,
        "DDIM sigma-hat (beta)": (partial(DDIM, eta=1.0, sigma_hat=True), BetaTilde()),
        "DDPM analytic variance": (DDPM, optimum),
        "DDIM eta=0, quadratic": (partial(DDIM, eta=0.0, spacing="quadratic"), BetaTilde()),
        "Heun, quadratic": (partial(Heun, spacing="quadratic"), BetaTilde()),
        "DPM-Solver++, quadratic": (partial(DPMSolver, spacing="quadratic"), BetaTilde()),
    }


def exact_sampler_tables(data: AnalyticData, steps: Sequence[int]) -> tuple[Rows, Rows]:
    """Return the standard deviation and W2 distance of each sampler on Gaussian data.

    Both are those of the sampler's exact distribution. The standard deviation is the root mean
    variance over dimensions.
    """
    stds: Rows = {}
    distances: Rows = {}
    for name, (sampler, variance) in _samplers(Analytic(data.mse)).items():
        denoiser = data.denoiser(variance)
        assert isinstance(denoiser, GaussianDenoiser)
        distributions = [propagate(sampler(steps=count, clip=None), denoiser) for count in steps]
        stds[name] = [covariance.diagonal().mean().sqrt().item() for _, covariance in distributions]
        distances[name] = [
            wasserstein(denoiser, mean, covariance) for mean, covariance in distributions
        ]
    return stds, distances


def wasserstein(data: GaussianDenoiser, mean: Tensor, covariance: Tensor) -> float:
    """Return the W2 distance of N(mean, covariance) to the data, which has the same axes."""
    axes = (data.axes.T @ covariance @ data.axes).diagonal().clamp(min=0).sqrt()
    squared = (mean - data.mean).square().sum() + (axes - data.eigenvalues.sqrt()).square().sum()
    return squared.sqrt().item()


def sampled_sampler_table(data: AnalyticData, steps: Sequence[int], count: int, seed: int) -> Rows:
    """Return the sliced W2 distance of `count` samples of each sampler to points of the data.

    The row "data" is the distance of other points of the data: the expected optimum.
    """
    process = data.denoiser(BetaTilde()).process
    points, others = (data.draw(count, make_generator(seed, 2 + i)) for i in range(2))
    distances: Rows = {"data": [sliced_wasserstein(others, points)] * len(steps)}
    rows = _samplers(Analytic(data.mse))
    for name, (sampler, variance) in tqdm(rows.items(), desc="samplers", leave=False, disable=None):
        distances[name] = []
        for step_count in steps:
            generator = make_generator(seed, 4)
            sample = sampler(steps=step_count, clip=None)

            def noise(like: Tensor, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(like.shape, dtype=torch.float64, generator=generator)

            x = sample.prior(process, noise(points))
            x = sample(data.denoiser(variance), x, noise=noise)
            distances[name].append(sliced_wasserstein(x, points))
    return distances


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Return the sliced W2 distance of a and b, (N, d) each.

    It is the root mean of squared W2 distances of projections on random directions.
    """
    axes = torch.randn(a.shape[1], directions, dtype=torch.float64, generator=make_generator(0))
    axes = axes / axes.norm(dim=0)
    return ((a @ axes).sort(0).values - (b @ axes).sort(0).values).square().mean().sqrt().item()


def vlb_table(data: AnalyticData, steps: Sequence[int]) -> Rows:
    """Return the bound in bits/dim with each variance on uniform chains."""
    process = data.denoiser(BetaTilde()).process
    optimum = Analytic(data.mse)
    rows: Rows = {"beta_tilde": [], "beta": [], "learned_range at its optimum": [], "analytic": []}
    for count in steps:
        times = timesteps(process.steps, count, "uniform")
        learned: tuple[Variance, Tensor] = (
            LearnedRange(),
            optimal_variance_output(process, optimum, times),
        )
        variances = [(BetaTilde(), None), (Beta(), None), learned, (optimum, None)]
        for row, (variance, output) in zip(rows.values(), variances, strict=True):
            vlb = analytic_vlb(process, variance, times, data.mse, data.second_moment, output)
            row.append((vlb["L_T"] + vlb["terms"].sum()).item())
    return rows
