"""Compare inpainting, RePaint, PiGDM and DPS with the exact posterior of Gaussian images.

    python scripts/compare_inverse.py

The images are 4x4, with a variance of 0.25 and a correlation of 0 or exp(-distance / 2), and the
denoiser is exact. Two measurements: the right half hidden, and 2x2 means with noise 0.1. The errors
are |m - m*| / sqrt(tr S*) of the mean and |S - S*| / |S*| of the covariance, for the posterior
N(m*, S*). They are exact, except those of DPS, which are from 10,000 samples.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
from ddpm_lab.diffusion.analytic_propagation import propagate_affine
from ddpm_lab.diffusion.inverse_guidance import DPS, Inpainting, InverseProblem, PiGDM
from ddpm_lab.diffusion.operators import Mask, downsample
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM, DDPM, RePaint, Sampler
from ddpm_lab.diffusion.schedules import linear
from ddpm_lab.diffusion.variances import Analytic, BetaTilde
from ddpm_lab.reports.terminal import format_grid

SHAPE, SIZE = (1, 4, 4), 16
SAMPLES = 10_000
Moments = tuple[Tensor, Tensor]
"""Mean (d,) and covariance (d, d)"""


class Case(NamedTuple):
    """Gaussian images, a measurement and the exact posterior."""

    denoiser: GaussianDenoiser
    problem: InverseProblem
    posterior: Moments


def correlated() -> Tensor:
    """Return a covariance (16, 16) of 4x4 images."""
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    places = torch.stack([y, x], dim=-1).view(-1, 2).double()
    return 0.25 * (-torch.cdist(places, places) / 2).exp()


def condition(mean: Tensor, covariance: Tensor, matrix: Tensor, y: Tensor, noise: float) -> Moments:
    """Return the moments of N(mean, covariance) given y = matrix x + noise z."""
    identity = torch.eye(len(matrix), dtype=torch.float64)
    total = matrix @ covariance @ matrix.T + noise**2 * identity
    gain = covariance @ matrix.T @ torch.linalg.pinv(total, hermitian=True)
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def case(name: str, covariance: Tensor) -> Case:
    """Return the measurement "half" or "mean" of one image from N(0.1, covariance)."""
    keep = torch.ones(SHAPE, dtype=torch.float64)
    keep[..., 2:] = 0
    operator, noise = (Mask(keep), 0.0) if name == "half" else (downsample(SHAPE), 0.1)
    mean = torch.full((SIZE,), 0.1, dtype=torch.float64)
    denoiser = GaussianDenoiser(ForwardProcess(linear()), BetaTilde(), mean, covariance)
    denoiser.variance = Analytic(denoiser.mse())  # else resampling loses variance in each step
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(SIZE, dtype=torch.float64, generator=generator)
    x0 = denoiser.mean + torch.linalg.cholesky(covariance) @ z
    y = operator.forward(x0.view(1, *SHAPE))
    y = y + noise * torch.randn(y.shape, dtype=torch.float64, generator=generator)
    unit = torch.eye(SIZE, dtype=torch.float64).view(-1, *SHAPE)
    matrix = operator.forward(unit).flatten(1).T
    posterior = condition(denoiser.mean, covariance, matrix, y.flatten(), noise)
    return Case(denoiser, InverseProblem(operator, y, noise), posterior)


def errors(moments: Moments, posterior: Moments) -> tuple[float, float]:
    """Return the errors of mean and covariance, relative to the posterior."""
    (mean, covariance), (true_mean, true_covariance) = moments, posterior
    size = true_covariance.trace().sqrt()
    return (
        ((mean - true_mean).norm() / size).item(),
        ((covariance - true_covariance).norm() / true_covariance.norm()).item(),
    )


def sampled(sampler: Sampler, denoiser: DPS, count: int = SAMPLES) -> Moments:
    """Return the moments of `count` samples."""
    torch.manual_seed(0)
    z = torch.randn(count, *SHAPE, dtype=torch.float64)
    with torch.inference_mode():
        x = sampler(denoiser, sampler.prior(denoiser.process, z)).flatten(1)
    return x.mean(0), x.T.cov()


def rows(of: Case) -> Iterator[tuple[str, Moments]]:
    """Yield each method with the moments of its samples."""
    denoiser, problem, _ = of
    for data_std in (0.5, 1.0):
        guided = PiGDM(denoiser, problem, data_std=data_std)
        for sampler in (DDIM(steps=1000, clip=None), DDIM(steps=25, clip=None), DDPM(clip=None)):
            name = f"PiGDM data_std={data_std:g}, {type(sampler).__name__} {sampler.steps or 1000}"
            yield name, propagate_affine(sampler, guided, SHAPE)
    for zeta in (0.1, 0.3, 1.0):
        guided_dps = DPS(denoiser, problem, zeta=zeta, clip=None)
        yield f"DPS zeta={zeta:g}, DDPM 1000", sampled(DDPM(clip=None), guided_dps)
    if problem.noise:
        return
    replaced = Inpainting(denoiser, problem)
    for resamples in (1, 2, 5, 10, 20, 50, 100):
        sampler = RePaint(steps=100, resamples=resamples, jump=10, clip=None)
        name = f"inpainting, RePaint 100, resamples={resamples} jump=10"
        yield name, propagate_affine(sampler, replaced, SHAPE)
    for resamples in (10, 100):
        sampler = RePaint(steps=100, resamples=resamples, jump=1, clip=None)
        name = f"inpainting, RePaint 100, resamples={resamples} jump=1"
        yield name, propagate_affine(sampler, replaced, SHAPE)


def main() -> None:
    independent = 0.25 * torch.eye(SIZE, dtype=torch.float64)
    for law, covariance in (("independent", independent), ("correlated", correlated())):
        for measurement in ("half", "mean"):
            problem = case(measurement, covariance)
            cells = {
                name: [f"{error:.2g}" for error in errors(moments, problem.posterior)]
                for name, moments in rows(problem)
            }
            title = f"{law} pixels, {measurement}"
            print(format_grid(title, "method", ["mean", "covariance"], cells), flush=True)


if __name__ == "__main__":
    main()
