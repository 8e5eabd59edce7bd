"""One case of the analytic tier: metrics of a sampler, a variance and a guidance."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ddpm_lab.diffusion.analytic_denoisers import (
    GaussianDenoiser,
    MixtureClassifier,
    OptimalRange,
    analytic_vlb,
    propagate,
)
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import DenoiserLike
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import make_generator
from ddpm_lab.diffusion.samplers import DDIM, Sampler
from ddpm_lab.diffusion.variances import Analytic, LearnedDiagonal, LearnedRange, Variance
from ddpm_lab.evaluation.analytic_tables import AnalyticData, sliced_wasserstein, wasserstein
from ddpm_lab.evaluation.statistics import inception_score

OPTIMA: dict[type[Variance], Callable[[Analytic], Variance]] = {
    LearnedRange: OptimalRange,
    LearnedDiagonal: lambda optimum: optimum,
}
"""Optima of learned variances"""


def evaluate_case(
    data: AnalyticData,
    sampler: Sampler,
    variance: Variance | None,
    guidance: Callable[[DenoiserLike], DenoiserLike],
    *,
    times: Sequence[int],
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of samples, the bound, the reconstruction MSE and the schedule.

    - Samples of Gaussian data are measured exactly, those of other data from `count` samples.
    - The bound on the chain `times` needs data with an entropy.
    - The reconstruction MSE needs an invertible sampler.

    A learned `variance` is at its optimum. None is `Analytic`.
    """
    optimum = Analytic(data.mse)
    if variance is None:
        variance = optimum
    elif type(variance) in OPTIMA:
        variance = OPTIMA[type(variance)](optimum)
    denoiser = data.denoiser(variance)
    guided = guidance(denoiser)
    invertible = isinstance(sampler, DDIM) and sampler.eta == 0
    if isinstance(denoiser, GaussianDenoiser):
        metrics = _exact_metrics(denoiser, guided, sampler, invertible)
    else:
        metrics = _sample_metrics(data, guided, sampler, invertible, count, seed)
    if data.entropy is not None:
        terms = analytic_vlb(denoiser.process, variance, times, data.mse, data.second_moment)
        bits = (terms["L_T"] + terms["terms"].sum()).item()
        metrics["nll"] = {
            "bits_per_dim": bits,
            "entropy": data.entropy,
            "gap": bits - data.entropy,
            "L_T": terms["L_T"].item(),
            "L_0": terms["terms"][-1].item(),
            "terms": [
                {"t": t, "s": s, "bits": term}
                for (t, s), term in zip(pairwise(times), terms["terms"].tolist(), strict=True)
            ],
        }
    return {**metrics, "schedule_curve": schedule_curve(denoiser.process)}


def _exact_metrics(
    denoiser: GaussianDenoiser, guided: DenoiserLike, sampler: Sampler, invertible: bool
) -> dict[str, Any]:
    guided(denoiser.mean[None], torch.ones(1, dtype=torch.int64))  # UserError if it needs labels
    mean, covariance = propagate(sampler, denoiser)
    metrics = {
        "wasserstein": wasserstein(denoiser, mean, covariance),
        "std": covariance.diagonal().mean().sqrt().item(),
        "std_of_data": denoiser.eigenvalues.mean().sqrt().item(),
    }
    if invertible:
        # The reconstruction is affine on each axis, so its values at 0 and 1 determine it.
        probes = torch.stack([torch.zeros_like(denoiser.mean), denoiser.axes.sum(1)])
        offset, one = _reconstruct(sampler, denoiser, probes) @ denoiser.axes
        bias = (one - offset - 1) * (denoiser.mean @ denoiser.axes) + offset
        error = bias**2 + (one - offset - 1) ** 2 * denoiser.eigenvalues
        metrics["reconstruction"] = error.mean().item() / 4
    return metrics


def _sample_metrics(
    data: AnalyticData,
    guided: DenoiserLike,
    sampler: Sampler,
    invertible: bool,
    count: int,
    seed: int,
) -> dict[str, Any]:
    assert data.mixture is not None
    (points, label), (others, _) = (
        data.mixture.labelled(count, make_generator(seed, 2 + i)) for i in range(2)
    )
    conditions = None
    if guided.classes is not None and data.mixture.labels is not None:
        classes = data.mixture.labels.unique()
        conditions = classes[torch.arange(count) % len(classes)]
    generator = make_generator(seed, 4)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator)

    x = sampler(guided, sampler.prior(guided.process, noise(points)), Condition(conditions), noise)
    metrics = {
        "sliced_wasserstein": sliced_wasserstein(x, points),
        "sliced_wasserstein_of_data": sliced_wasserstein(others, points),
    }
    if data.mixture.labels is not None:
        # A finite set has p(y | x_0) only at its points, so p(y | x_1) replaces it.
        time = torch.full((count,), 0 if data.mixture.std else 1)
        posterior = MixtureClassifier(guided.process, data.mixture)(x, time).exp()
        metrics["inception_score"] = inception_score(posterior)
        if conditions is not None:
            metrics["class_accuracy"] = posterior.gather(1, conditions[:, None]).mean().item()
    if invertible:
        cond = Condition(None if conditions is None else label)
        decoded = _reconstruct(sampler, guided, points, cond)
        metrics["reconstruction"] = ((decoded - points) / 2).square().mean().item()
    return metrics


def _reconstruct(
    sampler: Sampler, denoiser: DenoiserLike, x: Tensor, cond: Condition = Condition()
) -> Tensor:
    """Encode and decode `x` (B, d) (Song et al., 2021, section 5.4)."""
    (_, x_T) = deque(sampler.encode(denoiser, x, cond), maxlen=1)[0]
    return sampler(denoiser, x_T, cond)


def schedule_curve(process: ForwardProcess) -> list[dict[str, float | None]]:
    """Return a schedule at up to 101 times (Nichol & Dhariwal, 2021, figures 1 and 5).

    Each entry has t / T, alpha_bar, and beta and the ratio of variances of the full chain, which
    are None at t = 0.
    """
    t = torch.tensor(sorted({round(i * process.steps / 100) for i in range(101)}))
    s = (t - 1).clamp(min=0)
    alpha_bar = (process.alpha_sigma(t)[0] / process.scale(t)) ** 2
    beta, ratio = process.beta(t, s), process.beta_tilde(t, s) / process.beta(t, s)
    return [
        {
            "t": time / process.steps,
            "alpha_bar": a,
            "beta": b if time else None,
            "beta_tilde_over_beta": r if time else None,
        }
        for time, a, b, r in zip(
            t.tolist(), alpha_bar.tolist(), beta.tolist(), ratio.tolist(), strict=True
        )
    ]
