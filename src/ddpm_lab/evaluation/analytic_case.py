"""One sampler, variance and guidance on data with a closed-form denoiser."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

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
from ddpm_lab.evaluation.analytic_tables import AnalyticData, gaussian_distances, sliced_wasserstein
from ddpm_lab.evaluation.metrics import Number, Results, Rows
from ddpm_lab.evaluation.statistics import inception_score
from ddpm_lab.utils.errors import pluralize

OPTIMA: dict[type[Variance], Callable[[Analytic], Variance]] = {
    LearnedRange: OptimalRange,
    LearnedDiagonal: lambda optimum: optimum,
}
"""Learned variances at their optimum"""
ANALYTIC_NUMBERS = (
    Number("nll.gap", "bits/dim above the entropy", "lower"),
    Number("nll.L_T", "bits/dim", "lower"),
    Number("nll.L_0", "bits/dim", "lower"),
    Number("frechet", "whitened Fréchet distance", "lower"),
    Number("wasserstein", "W2 distance", "lower"),
    Number("sliced_wasserstein", "sliced W2", "lower"),
    Number("reconstruction", "mean squared error", "lower"),
)


def evaluate_case(
    data: AnalyticData,
    sampler: Sampler,
    variance: Variance | None,
    guidance: Callable[[DenoiserLike], DenoiserLike],
    *,
    times: Sequence[int],
    count: int,
    seed: int,
) -> Results:
    """Measure `sampler`: exactly for Gaussian data, else from `count` samples.

    Includes the variational bound on the chain `times` if the data has an entropy, the
    reconstruction error of a deterministic sampler, and the curve of the schedule. A learned
    `variance` is at its optimum; None stands for `Analytic`.
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
        results = _evaluate_exactly(denoiser, guided, sampler, invertible)
    else:
        results = _evaluate_samples(data, guided, sampler, invertible, count, seed)
    if data.entropy is not None:
        terms = analytic_vlb(denoiser.process, variance, times, data.mse, data.second_moment)
        bits = (terms["L_T"] + terms["terms"].sum()).item()
        pairs = zip(pairwise(times), terms["terms"].tolist(), strict=True)
        results["nll"] = {
            "bits_per_dim": bits,
            "entropy": data.entropy,
            "gap": bits - data.entropy,
            "L_T": terms["L_T"].item(),
            "L_0": terms["terms"][-1].item(),
            "terms": [{"t": t, "s": s, "bits": term} for (t, s), term in pairs],
        }
    return {**results, "schedule_curve": schedule_curve(denoiser.process)}


def analytic_case_rows(results: Results) -> Rows:
    """Format the results of `evaluate_case`."""
    protocol = results["protocol"]
    steps = f"{protocol['steps']} of {protocol['T']} steps"
    chain = f"{protocol['sampler']['name']}, {steps}, {protocol['variance']}"
    rows: Rows = []
    if "wasserstein" in results:
        rows.append(("Wasserstein distance", f"{results['wasserstein']:.4f}", f"exactly; {chain}"))
        remark = "in coordinates that whiten the data, per dimension"
        rows.append(("Fréchet distance", f"{results['frechet']:.4g}", remark))
        remark = f"of the data: {results['std_of_data']:.4f}"
        rows.append(("standard deviation", f"{results['std']:.4f}", remark))
    else:
        remark = f"other points of the data: {results['sliced_wasserstein_of_data']:.4f}"
        remark += f"; {protocol['count']} samples, {chain}"
        rows.append(("sliced Wasserstein", f"{results['sliced_wasserstein']:.4f}", remark))
    if "class_accuracy" in results:
        text = f"{100 * results['class_accuracy']:.1f} %"
        rows.append(("class accuracy", text, "mean p(label | x_0) of the label in the condition"))
    if "inception_score" in results:
        text = f"{results['inception_score']:.3f}"
        rows.append(("inception score", text, "by the exact p(y | x_0)"))
    if "nll" in results:
        nll = results["nll"]
        remark = f"{nll['gap']:.4f} above the entropy {nll['entropy']:.4f}"
        remark += f"; {pluralize(len(nll['terms']), 'step')}"
        rows.append(("NLL, bits/dim", f"<= {nll['bits_per_dim']:.4f}", remark))
    if "reconstruction" in results:
        text = f"{results['reconstruction']:.2g}"
        rows.append(("reconstruction, MSE", text, "encoded and decoded, on data in [0, 1]"))
    return rows


def _evaluate_exactly(
    denoiser: GaussianDenoiser, guided: DenoiserLike, sampler: Sampler, invertible: bool
) -> Results:
    guided(denoiser.mean[None], torch.ones(1, dtype=torch.int64))  # UserError if it needs labels
    mean, covariance = propagate(sampler, denoiser)
    results = {
        **gaussian_distances(denoiser, mean, covariance),
        "std_of_data": denoiser.eigenvalues.mean().sqrt().item(),
    }
    if invertible:
        # Reconstruction is affine on each axis: 0 and 1 determine it.
        probes = torch.stack([torch.zeros_like(denoiser.mean), torch.ones_like(denoiser.mean)])
        images = _reconstruct(sampler, denoiser, denoiser.from_axes(probes))
        offset, one = denoiser.to_axes(images)
        bias = (one - offset - 1) * denoiser.to_axes(denoiser.mean) + offset
        error = bias**2 + (one - offset - 1) ** 2 * denoiser.eigenvalues
        results["reconstruction"] = error.mean().item() / 4
    return results


def _evaluate_samples(
    data: AnalyticData,
    guided: DenoiserLike,
    sampler: Sampler,
    invertible: bool,
    count: int,
    seed: int,
) -> Results:
    assert data.mixture is not None
    (points, label), (others, _) = (
        data.mixture.sample_with_labels(count, make_generator(seed, 2 + i)) for i in range(2)
    )
    labels = None
    if guided.classes is not None and data.mixture.labels is not None:
        classes = data.mixture.labels.unique()
        labels = classes[torch.arange(count) % len(classes)]
    generator = make_generator(seed, 4)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator)

    x = sampler(guided, sampler.prior(guided.process, noise(points)), Condition(labels), noise)
    results = {
        "sliced_wasserstein": sliced_wasserstein(x, points),
        "sliced_wasserstein_of_data": sliced_wasserstein(others, points),
    }
    if data.mixture.labels is not None:
        # A finite set defines p(y | x_0) only at its points, so p(y | x_1) replaces it.
        time = torch.full((count,), 0 if data.mixture.std else 1)
        posterior = MixtureClassifier(guided.process, data.mixture)(x, time).exp()
        results["inception_score"] = inception_score(posterior)
        if labels is not None:
            results["class_accuracy"] = posterior.gather(1, labels[:, None]).mean().item()
    if invertible:
        cond = Condition(None if labels is None else label)
        error = (_reconstruct(sampler, guided, points, cond) - points) / 2
        results["reconstruction"] = error.square().mean().item()
    return results


def _reconstruct(
    sampler: Sampler, denoiser: DenoiserLike, x: Tensor, cond: Condition = Condition()
) -> Tensor:
    """Encode and decode `x` (B, d) (Song et al., 2021, section 5.4)."""
    (_, x_T) = deque(sampler.encode(denoiser, x, cond), maxlen=1)[0]
    return sampler(denoiser, x_T, cond)


def schedule_curve(process: ForwardProcess) -> list[dict[str, float | None]]:
    """Return a schedule at up to 101 times (Nichol & Dhariwal, 2021, figures 1 and 5).

    `t` is a share of T. beta and beta_tilde / beta of the full chain are None at t = 0.
    """
    t = torch.tensor(sorted({round(i * process.steps / 100) for i in range(101)}))
    s = (t - 1).clamp(min=0)
    alpha_bar = (process.alpha_sigma(t)[0] / process.scale(t)) ** 2
    beta, ratio = process.beta(t, s), process.beta_tilde(t, s) / process.beta(t, s)
    columns = (t.tolist(), alpha_bar.tolist(), beta.tolist(), ratio.tolist())
    return [
        {
            "t": time / process.steps,
            "alpha_bar": a,
            "beta": b if time else None,
            "beta_tilde_over_beta": r if time else None,
        }
        for time, a, b, r in zip(*columns, strict=True)
    ]
