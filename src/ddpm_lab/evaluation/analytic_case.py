"""One case of the analytic tier: a sampler, a variance and a guidance, measured as evaluate.py measures a run."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, MixtureClassifier
from ddpm_lab.diffusion.analytic_propagation import OptimalRange, analytic_vlb, propagate
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
"""What variances that a network learns are at their optimum."""


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
    """What `sampler` makes of noise, exactly for Gaussian data, else of `count` samples; where the law has an entropy,
    the bound on the chain `times`; where the sampler can be run backwards, the error of a round trip; and the schedule.

    A `variance` that is learned is at its optimum, and None is `Analytic`.
    """
    optimum = Analytic(data.mse)
    chosen = (
        optimum if variance is None else OPTIMA.get(type(variance), lambda _: variance)(optimum)
    )
    denoiser = data.denoiser(chosen)
    guided = guidance(denoiser)
    invertible = isinstance(sampler, DDIM) and sampler.eta == 0
    if isinstance(denoiser, GaussianDenoiser):
        found = _exactly(denoiser, guided, sampler, invertible)
    else:
        found = _sampled(data, guided, sampler, invertible, count, seed)
    if data.entropy is not None:
        terms = analytic_vlb(denoiser.process, chosen, times, data.mse, data.second_moment)
        bits = (terms["L_T"] + terms["terms"].sum()).item()
        found["nll"] = {
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
    return {**found, "schedule_curve": schedule_curve(denoiser.process)}


def _exactly(
    denoiser: GaussianDenoiser, guided: DenoiserLike, sampler: Sampler, invertible: bool
) -> dict[str, Any]:
    guided(
        denoiser.mean[None], torch.ones(1, dtype=torch.int64)
    )  # raises UserError where it needs labels
    mean, covariance = propagate(sampler, denoiser)
    found = {
        "wasserstein": wasserstein(denoiser, mean, covariance),
        "std": covariance.diagonal().mean().sqrt().item(),
        "std_of_data": denoiser.eigenvalues.mean().sqrt().item(),
    }
    if invertible:
        # On each axis the trip is affine: what it makes of 0, and of 1.
        probes = torch.stack([torch.zeros_like(denoiser.mean), denoiser.axes.sum(1)])
        offset, one = _round_trip(sampler, denoiser, probes) @ denoiser.axes
        missed = (one - offset - 1) * (denoiser.mean @ denoiser.axes) + offset
        error = missed**2 + (one - offset - 1) ** 2 * denoiser.eigenvalues
        found["reconstruction"] = error.mean().item() / 4
    return found


def _sampled(
    data: AnalyticData,
    guided: DenoiserLike,
    sampler: Sampler,
    invertible: bool,
    count: int,
    seed: int,
) -> dict[str, Any]:
    assert data.mixture is not None
    (wanted, label), (others, _) = (
        data.mixture.labelled(count, make_generator(seed, 2 + i)) for i in range(2)
    )
    conditions = None
    if guided.classes is not None and data.mixture.labels is not None:
        known = data.mixture.labels.unique()
        conditions = known[torch.arange(count) % len(known)]
    generator = make_generator(seed, 4)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator)

    x = sampler(guided, sampler.prior(guided.process, noise(wanted)), Condition(conditions), noise)
    found = {
        "sliced_wasserstein": sliced_wasserstein(x, wanted),
        "sliced_wasserstein_of_data": sliced_wasserstein(others, wanted),
    }
    if data.mixture.labels is not None:
        # A finite set has no p(y | x_0) but at its points, so there it is p(y | x_1).
        time = torch.full((count,), 0 if data.mixture.std else 1)
        posterior = MixtureClassifier(guided.process, data.mixture)(x, time).exp()
        found["inception_score"] = inception_score(posterior)
        if conditions is not None:
            found["class_accuracy"] = posterior.gather(1, conditions[:, None]).mean().item()
    if invertible:
        told = Condition(None if conditions is None else label)
        found["reconstruction"] = (
            ((_round_trip(sampler, guided, wanted, told) - wanted) / 2).square().mean().item()
        )
    return found


def _round_trip(
    sampler: Sampler, denoiser: DenoiserLike, x: Tensor, cond: Condition = Condition()
) -> Tensor:
    """`x` (B, d) encoded and decoded (Song et al., 2021, section 5.4)."""
    (_, x_T) = deque(sampler.encode(denoiser, x, cond), maxlen=1)[0]
    return sampler(denoiser, x_T, cond)


def schedule_curve(process: ForwardProcess) -> list[dict[str, float | None]]:
    """A schedule at 101 times at most (Nichol & Dhariwal, 2021, figures 1 and 5): `t` as a share of T, alpha_bar, beta
    of the full chain, and the ratio of its two variances; at t = 0, where no step begins, None.
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
