"""Tables of samplers and variational bounds for data with a closed-form denoiser."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lab.data.module import Data
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

MAX_DIMS = 10_000
"""Maximum number of dimensions of a Gaussian"""
Rows = dict[str, list[float]]
"""A number for each number of steps, by row"""


class AnalyticData(NamedTuple):
    """Data with a closed-form denoiser, and the moments that bounds need."""

    name: str
    denoiser: Callable[[Variance], GaussianDenoiser | MixtureDenoiser]
    mse: Tensor
    """E|x_0 - E[x_0 | x_t]|^2 per dimension, (T + 1,)"""
    second_moment: float
    entropy: float | None
    """Entropy in bits/dim; None for a finite set, which has no density"""
    draw: Callable[[int, torch.Generator], Tensor]
    """Function that draws points of the data, (count, d)"""
    mixture: Mixture | None = None
    """The mixture with its labels, unless the data is Gaussian"""


def gaussian_data(
    process: ForwardProcess, mean: Sequence[float], covariance: Sequence[Sequence[float]]
) -> AnalyticData:
    """Return N(mean, covariance).

    Raises ValueError unless the covariance is symmetric, positive definite and of the right size.
    """
    try:
        m, c = (torch.tensor(part, dtype=torch.float64) for part in (mean, covariance))
    except (TypeError, ValueError):  # not numbers, or rows of different lengths
        raise ValueError(
            f"mean={[*mean]} and covariance={[*covariance]} must be a list of numbers and a square "
            "matrix; try covariance=[[0.25]] mean=[0]"
        ) from None
    symmetric = c.shape == (len(m), len(m)) and torch.equal(c, c.T)
    if not symmetric or torch.linalg.eigvalsh(c).min() <= 0:
        raise ValueError(
            f"covariance={[*map(list, covariance)]} must be a symmetric, positive definite matrix "
            f"of the size of mean={[*mean]}; try covariance=[[0.25]] mean=[0]"
        )
    name = f"N(mean, covariance) in {len(m)} dimension{'s' if len(m) > 1 else ''}"
    return _gaussian(name, process, m, c)


def spectral_data(process: ForwardProcess, exponent: float, dims: int) -> AnalyticData:
    """Return a Gaussian whose i-th principal axis has a variance proportional to i^-exponent.

    Its mean is 0 and its mean variance 0.25. Principal components of natural images have exponents
    near 1.5. Raises ValueError unless 0 <= exponent <= 3 and dims >= 1.
    """
    if type(exponent) not in (int, float) or not 0 <= exponent <= 3:
        raise ValueError(f"spectrum={exponent} must be in 0..3; natural images have about 1.5")
    if type(dims) is not int or not 1 <= dims <= MAX_DIMS:
        raise ValueError(f"dims={dims} must be in 1..{MAX_DIMS}")
    variances = torch.arange(1, dims + 1, dtype=torch.float64) ** -exponent
    variances *= 0.25 / variances.mean()
    name = f"Gaussian in {dims} dimensions, variances proportional to i^-{exponent:g}"
    return _gaussian(name, process, torch.zeros_like(variances), variances)


def _gaussian(name: str, process: ForwardProcess, mean: Tensor, covariance: Tensor) -> AnalyticData:
    denoiser = GaussianDenoiser(process, BetaTilde(), mean, covariance)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(count, len(mean), dtype=torch.float64, generator=generator)
        return mean + denoiser.from_axes(z * denoiser.eigenvalues.sqrt())

    return AnalyticData(
        name,
        lambda variance: GaussianDenoiser(process, variance, mean, covariance),
        denoiser.mse(),
        denoiser.second_moment(),
        denoiser.entropy(),
        draw,
    )


def mixture_data(
    process: ForwardProcess,
    data: Data,
    count: int,
    seed: int,
    times: Iterable[int] | None = None,
    conditional: bool = False,
) -> AnalyticData:
    """Return the mixture of `data`, or its first `count` training samples as a finite set.

    Args:
        times: Timesteps at which `mse` is computed (None: all); it is 0 at others. For a finite set
            it is a mean over at most 512 draws.
        conditional: The denoiser takes labels.
    """
    split = data.train.select(slice(count))
    x0 = split.x0.double().flatten(1)
    weights = torch.full((len(x0),), 1 / len(x0), dtype=torch.float64)
    mixture = data.mixture or Mixture(x0, weights, 0.0, split.labels)
    conditioned = mixture if conditional else mixture._replace(labels=None)
    denoiser = MixtureDenoiser(process, BetaTilde(), conditioned)
    steps = range(1, process.steps + 1) if times is None else sorted({*times} - {0})
    bar = tqdm(steps, desc="errors of the exact denoiser", leave=False, disable=None)
    if mixture.std:
        name = f"the distribution of {data.name}"
        mse, entropy = _mse_and_entropy(denoiser, mixture, bar)
    else:
        name = f"{len(x0)} points of {data.name}, as a finite set"
        mse, entropy = _sampled_mse(denoiser, mixture, bar, count, seed), None
    return AnalyticData(
        name,
        lambda variance: MixtureDenoiser(process, variance, conditioned),
        mse,
        mixture.second_moment(),
        entropy,
        lambda count, generator: mixture.sample(count, generator)[0],
        mixture,
    )


def _mse_and_entropy(
    denoiser: MixtureDenoiser, mixture: Mixture, times: Iterable[int]
) -> tuple[Tensor, float | None]:
    """Return the error at `times`, (T + 1,), and the entropy in bits/dim, given the label if used.

    Gauss-Hermite quadrature around every mean.
    """
    count, dims = mixture.means.shape
    order = min(32, max(2, int(600 ** (1 / dims))))  # about 600 nodes in all dimensions together
    nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(order))
    z = torch.cartesian_prod(*[nodes] * dims).view(-1, dims)
    z_weights = torch.cartesian_prod(*[weights / weights.sum()] * dims).view(-1, dims).prod(1)
    label = None if mixture.labels is None else mixture.labels.repeat_interleave(len(z))
    process = denoiser.process

    def points(t: int) -> tuple[Tensor, Tensor, Condition]:
        alpha, sigma, _, _ = process.table[t]
        x_t = alpha * mixture.means[:, None] + torch.hypot(alpha * mixture.std, sigma) * z
        return x_t.flatten(0, 1), torch.full((len(z) * count,), t), Condition(label)

    def mean(values: Tensor) -> Tensor:
        return mixture.weights @ (values.view(count, -1) @ z_weights)

    mse = torch.zeros(process.steps + 1, dtype=torch.float64)
    for t in times:
        mse[t] = mean(denoiser.mse(*points(t)))
    # H(x) = H(x | k) + H(k) - H(k | x) for the component k, all given the label if it is used.
    same_label = torch.ones(count, count)
    if denoiser.labels is not None:
        same_label = denoiser.labels[:, None] == denoiser.labels
    component = mixture.weights @ (same_label.double() @ mixture.weights / mixture.weights).log()
    posterior = mean(torch.special.entr(denoiser.logits(*points(0)).softmax(1)).sum(1))
    gaussian = 0.5 * math.log(2 * math.pi * math.e * mixture.std**2)
    return mse, (gaussian + (component - posterior).item() / dims) / math.log(2)


def _sampled_mse(
    denoiser: MixtureDenoiser, mixture: Mixture, times: Iterable[int], count: int, seed: int
) -> Tensor:
    """Return the error at `times`, (T + 1,), as a mean over draws."""
    generator = make_generator(seed, 1)
    points, label = mixture.sample_with_labels(min(count, 512), generator)
    mse = torch.zeros(denoiser.process.steps + 1, dtype=torch.float64)
    for t in times:
        time = torch.full((len(points),), t)
        eps = torch.randn(points.shape, dtype=torch.float64, generator=generator)
        x_t = denoiser.process.diffuse(points, eps, time)
        mse[t] = (denoiser(x_t, time, Condition(label)).x0 - points).square().mean()
    return mse


def _samplers(optimum: Variance) -> dict[str, tuple[Callable[..., Sampler], Variance]]:
    """Return samplers as functions of `steps`: the rows of DDIM's table 1, and more recent ones."""
    tilde = BetaTilde()
    rows: dict[str, tuple[Callable[..., Sampler], Variance]] = {
        f"DDIM eta={eta:g}": (partial(DDIM, clip=None, eta=eta), tilde)
        for eta in (0.0, 0.2, 0.5, 1.0)
    }
    rows["DDIM sigma-hat (beta)"] = partial(DDIM, clip=None, eta=1.0, sigma_hat=True), tilde
    rows["DDPM analytic variance"] = partial(DDPM, clip=None), optimum
    for name, solver in {"DDIM eta=0": DDIM, "Heun": Heun, "DPM-Solver++": DPMSolver}.items():
        rows[f"{name}, quadratic"] = partial(solver, clip=None, spacing="quadratic"), tilde
    return rows


def exact_sampler_tables(data: AnalyticData, steps: Sequence[int]) -> dict[str, Rows]:
    """Return the numbers of `gaussian_distances` of samplers on Gaussian data, by number."""
    tables: dict[str, Rows] = {}
    for name, (sampler, variance) in _samplers(Analytic(data.mse)).items():
        denoiser = data.denoiser(variance)
        assert isinstance(denoiser, GaussianDenoiser)
        for count in steps:
            numbers = gaussian_distances(denoiser, *propagate(sampler(steps=count), denoiser))
            for key, value in numbers.items():
                tables.setdefault(key, {}).setdefault(name, []).append(value)
    return tables


def gaussian_distances(
    data: GaussianDenoiser, mean: Tensor, covariance: Tensor
) -> dict[str, float]:
    """Compare N(mean, covariance) with data that has the same principal axes.

    - std: the root mean variance over dimensions.
    - wasserstein: the 2-Wasserstein distance.
    - frechet: its square, divided by the number of dimensions, after the linear map that whitens
      the data. This is FID with linear features: all axes have equal weight.
    """
    variances = covariance
    if data.axes is not None:
        variances = (data.axes.T @ covariance @ data.axes).diagonal()
    shift = data.to_axes(mean - data.mean)
    std = data.eigenvalues.clamp(min=0).sqrt()
    squares = shift.square() + (variances.clamp(min=0).sqrt() - std).square()
    return {
        "std": variances.mean().sqrt().item(),
        "wasserstein": squares.sum().sqrt().item(),
        "frechet": (squares / std.square()).mean().item(),
    }


def sampled_sampler_table(data: AnalyticData, steps: Sequence[int], count: int, seed: int) -> Rows:
    """Return sliced 2-Wasserstein distances of `count` samples to points of the data.

    The row "data" is the distance of other points of the data, a lower limit for samplers.
    """
    process = data.denoiser(BetaTilde()).process
    points, others = (data.draw(count, make_generator(seed, 2 + i)) for i in range(2))
    rows: Rows = {"data": [sliced_wasserstein(others, points)] * len(steps)}
    bar = tqdm(_samplers(Analytic(data.mse)).items(), desc="samplers", leave=False, disable=None)
    for name, (make_sampler, variance) in bar:
        rows[name] = []
        for n in steps:
            generator = make_generator(seed, 4)

            def noise(like: Tensor, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(like.shape, dtype=torch.float64, generator=generator)

            sampler = make_sampler(steps=n)
            x_T = sampler.prior(process, noise(points))
            x_0 = sampler(data.denoiser(variance), x_T, noise=noise)
            rows[name].append(sliced_wasserstein(x_0, points))
    return rows


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Return the sliced 2-Wasserstein distance of point sets `a` and `b`, (N, d) each.

    It is the root mean over random directions of the squared distance of the projections.
    """
    axes = torch.randn(a.shape[1], directions, dtype=torch.float64, generator=make_generator(0))
    axes = axes / axes.norm(dim=0)
    return ((a @ axes).sort(0).values - (b @ axes).sort(0).values).square().mean().sqrt().item()


def vlb_table(data: AnalyticData, steps: Sequence[int]) -> Rows:
    """Return the variational bound in bits/dim of each variance on evenly spaced chains."""
    process = data.denoiser(BetaTilde()).process
    optimum = Analytic(data.mse)
    rows: Rows = {"beta_tilde": [], "beta": [], "learned_range at its optimum": [], "analytic": []}
    for count in steps:
        times = timesteps(process.steps, count, "uniform")
        output = optimal_variance_output(process, optimum, times)
        variances: list[tuple[Variance, Tensor | None]] = [
            (BetaTilde(), None),
            (Beta(), None),
            (LearnedRange(), output),
            (optimum, None),
        ]
        for row, (variance, variance_output) in zip(rows.values(), variances, strict=True):
            terms = analytic_vlb(
                process, variance, times, data.mse, data.second_moment, variance_output
            )
            row.append((terms["L_T"] + terms["terms"].sum()).item())
    return rows
