"""The analytic tier: what samplers make of data whose denoiser is known, and what bounds say of it, without a
network.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.module import DataModule
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from ddpm_lab.diffusion.analytic_propagation import (
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
"""A number for each number of steps."""


class AnalyticData(NamedTuple):
    """Data of known law: its denoiser as a function of a variance, and what bounds need to know of it."""

    name: str
    denoiser: Callable[[Variance], GaussianDenoiser | MixtureDenoiser]
    mse: Tensor
    """E|x_0 - E[x_0 | x_t]|^2 per dimension, (T + 1,)"""
    second_moment: float
    entropy: float | None
    """In bits/dim; None for a finite set, which has no density"""
    draw: Callable[[int, torch.Generator], Tensor]
    """(count, d) points of the data"""
    mixture: Mixture | None = None
    """The law itself, where it is one, with its labels"""


def gaussian_data(
    process: ForwardProcess, mean: Sequence[float], covariance: Sequence[Sequence[float]]
) -> AnalyticData:
    """N(mean, covariance). Raises ValueError unless the covariance is symmetric, positive definite and of its size."""
    try:
        m, c = (torch.tensor(part, dtype=torch.float64) for part in (mean, covariance))
    except (TypeError, ValueError):  # what is no number, or rows of several lengths
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
            f"covariance={[*map(list, covariance)]} must be a symmetric, positive definite matrix of the "
            f"size of mean={[*mean]}; try covariance=[[0.25]] mean=[0]"
        )
    one = GaussianDenoiser(process, BetaTilde(), m, c)
    factor = torch.linalg.cholesky(c)
    return AnalyticData(
        f"N(mean, covariance) in {len(m)} dimension{'s' if len(m) > 1 else ''}",
        lambda variance: GaussianDenoiser(process, variance, m, c),
        one.mse(),
        one.second_moment(),
        one.entropy(),
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
    """The law of `data`: its mixture where it has one, else a finite set, the first `count` of its training split;
    where `conditional`, given the label. `times`: at which the denoiser's error is wanted (None: all); at others it is
    0. That of a finite set is a mean over at most 512 draws.
    """
    some = data.train.select(slice(count))
    x0 = some.x0.double().flatten(1)
    even = torch.full((len(x0),), 1 / len(x0), dtype=torch.float64)
    known = data.mixture or Mixture(x0, even, 0.0, some.labels)
    heard = known if conditional else known._replace(labels=None)
    denoiser = MixtureDenoiser(process, BetaTilde(), heard)
    wanted = range(1, process.steps + 1) if times is None else sorted({*times} - {0})
    bar = tqdm(wanted, desc="errors of the exact denoiser", leave=False, disable=None)
    mse, entropy = (
        _integrated(denoiser, known, bar)
        if known.std
        else (_drawn(denoiser, known, bar, count, seed), None)
    )
    name = (
        f"the law of {data.name}"
        if known.std
        else f"{len(x0)} points of {data.name}, as a finite set"
    )
    return AnalyticData(
        name,
        lambda variance: MixtureDenoiser(process, variance, heard),
        mse,
        known.second_moment(),
        entropy,
        lambda count, generator: known.sample(count, generator)[0],
        known,
    )


def _integrated(
    denoiser: MixtureDenoiser, known: Mixture, times: Iterable[int]
) -> tuple[Tensor, float]:
    """The error at `times`, (T + 1,), and the entropy of a mixture in bits/dim, given the label if the denoiser hears
    it: by Gauss-Hermite quadrature around every mean.
    """
    count, dims = known.means.shape
    nodes, weights = (
        torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(_nodes(dims))
    )
    z = torch.cartesian_prod(*[nodes] * dims).view(-1, dims)
    share = torch.cartesian_prod(*[weights / weights.sum()] * dims).view(-1, dims).prod(1)
    label = None if known.labels is None else known.labels.repeat_interleave(len(z))
    process = denoiser.process

    def around(t: int) -> tuple[Tensor, Tensor, Condition]:
        alpha, noise, _, _ = process.table[t]
        x_t = alpha * known.means[:, None] + torch.hypot(alpha * known.std, noise) * z
        return x_t.flatten(0, 1), torch.full((len(z) * count,), t), Condition(label)

    def mean(values: Tensor) -> Tensor:
        return known.weights @ (values.view(count, -1) @ share)

    mse = torch.zeros(process.steps + 1, dtype=torch.float64)
    for t in times:
        mse[t] = mean(denoiser.mse(*around(t)))
    # H(x) = H(x | k) + H(k) - H(k | x) of the component k, all given the label where that is heard.
    alike = (
        torch.ones(count, count)
        if denoiser.labels is None
        else denoiser.labels[:, None] == denoiser.labels
    )
    before = known.weights @ (alike.double() @ known.weights / known.weights).log()
    after = mean(torch.special.entr(denoiser.logits(*around(0)).softmax(1)).sum(1))
    within = 0.5 * math.log(2 * math.pi * math.e * known.std**2)
    return mse, (within + (before - after).item() / dims) / math.log(2)


def _nodes(dims: int) -> int:
    """As many for each dimension as make about 600 in all."""
    return min(32, max(2, int(600 ** (1 / dims))))


def _drawn(
    denoiser: MixtureDenoiser, known: Mixture, times: Iterable[int], count: int, seed: int
) -> Tensor:
    """The error at `times`, (T + 1,)."""
    generator = make_generator(seed, 1)
    points, label = known.labelled(min(count, 512), generator)
    mse = torch.zeros(denoiser.process.steps + 1, dtype=torch.float64)
    for t in times:
        at = torch.full((len(points),), t)
        eps = torch.randn(points.shape, dtype=torch.float64, generator=generator)
        estimate = denoiser(denoiser.process.diffuse(points, eps, at), at, Condition(label))
        mse[t] = (estimate.x0 - points).square().mean()
    return mse


def _samplers(optimum: Variance) -> dict[str, tuple[Callable[..., Sampler], Variance]]:
    """The rows of DDIM's table 1, and what came after."""

    def ddim(**options: object) -> Callable[..., Sampler]:
        return lambda **where: DDIM(**(options | where))  # type: ignore[arg-type]

    etas = {f"DDIM eta={eta:g}": (ddim(eta=eta), BetaTilde()) for eta in (0.0, 0.2, 0.5, 1.0)}
    return {
        **etas,
        "DDIM sigma-hat (beta)": (ddim(eta=1.0, sigma_hat=True), BetaTilde()),
        "DDPM analytic variance": (DDPM, optimum),
        "DDIM eta=0, quadratic": (ddim(eta=0.0, spacing="quadratic"), BetaTilde()),
        "Heun, quadratic": (
            lambda steps, clip: Heun(steps=steps, clip=clip, spacing="quadratic"),
            BetaTilde(),
        ),
        "DPM-Solver++, quadratic": (
            lambda steps, clip: DPMSolver(steps=steps, clip=clip, spacing="quadratic"),
            BetaTilde(),
        ),
    }


def exact_sampler_tables(data: AnalyticData, steps: Sequence[int]) -> tuple[Rows, Rows]:
    """Of Gaussian data: the standard deviation (root mean over dimensions) of what each sampler makes, and its
    Wasserstein distance (2) to the data, both from the sampler's exact law.
    """
    stds: Rows = {}
    distances: Rows = {}
    for name, (sampler, variance) in _samplers(Analytic(data.mse)).items():
        denoiser = data.denoiser(variance)
        assert isinstance(denoiser, GaussianDenoiser)
        laws = [propagate(sampler(steps=count, clip=None), denoiser) for count in steps]
        stds[name] = [covariance.diagonal().mean().sqrt().item() for _, covariance in laws]
        distances[name] = [wasserstein(denoiser, mean, covariance) for mean, covariance in laws]
    return stds, distances


def wasserstein(data: GaussianDenoiser, mean: Tensor, covariance: Tensor) -> float:
    """Distance (2) of N(mean, covariance) to the data, whose axes are its own, so that the covariances commute."""
    axes = (data.axes.T @ covariance @ data.axes).diagonal().clamp(min=0).sqrt()
    apart = (mean - data.mean).square().sum() + (axes - data.eigenvalues.sqrt()).square().sum()
    return apart.sqrt().item()


def sampled_sampler_table(data: AnalyticData, steps: Sequence[int], count: int, seed: int) -> Rows:
    """Sliced Wasserstein distance (2) of `count` samples of each sampler to as many points of the data, and, as "data",
    that of as many others, which no sampler can be expected to beat.
    """
    process = data.denoiser(BetaTilde()).process
    wanted, others = (data.draw(count, make_generator(seed, 2 + i)) for i in range(2))
    found: Rows = {"data": [sliced_wasserstein(others, wanted)] * len(steps)}
    rows = _samplers(Analytic(data.mse))
    for name, (sampler, variance) in tqdm(rows.items(), desc="samplers", leave=False, disable=None):
        found[name] = []
        for some in steps:
            generator = make_generator(seed, 4)
            made = sampler(steps=some, clip=None)

            def noise(like: Tensor, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(like.shape, dtype=torch.float64, generator=generator)

            x = made.prior(process, noise(wanted))
            found[name].append(
                sliced_wasserstein(made(data.denoiser(variance), x, noise=noise), wanted)
            )
    return found


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Root mean over random directions of the squared Wasserstein distance of the projections of a and b, (N, d)
    each.
    """
    along = torch.randn(a.shape[1], directions, dtype=torch.float64, generator=make_generator(0))
    along = along / along.norm(dim=0)
    return ((a @ along).sort(0).values - (b @ along).sort(0).values).square().mean().sqrt().item()


def vlb_table(data: AnalyticData, steps: Sequence[int]) -> Rows:
    """The bound in bits/dim with each variance, the learned one at its optimum, on even chains."""
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
        for row, (variance, said) in zip(rows.values(), variances, strict=True):
            found = analytic_vlb(process, variance, times, data.mse, data.second_moment, said)
            row.append((found["L_T"] + found["terms"].sum()).item())
    return rows
