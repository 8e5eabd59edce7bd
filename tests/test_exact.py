"""Analytic denoisers against Bayes' rule, and their propagation against matrices and probing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpm_lab.diffusion import analytic_propagation
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from ddpm_lab.diffusion.analytic_propagation import (
    OptimalRange,
    optimal_variance_output,
    propagate,
)
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.langevin import Langevin, PredictorCorrector
from ddpm_lab.diffusion.multistep_solvers import DPMSolver3M, DPMSolverSDE, UniPC
from ddpm_lab.diffusion.ode_solvers import EDM, DPMSolver, Heun
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM, DDPM
from ddpm_lab.diffusion.schedules import cosine, geometric, linear
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde, LearnedRange

PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, cosine, geometric)}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
T = torch.tensor([1, 20, 300, 600, 999])


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def covariance(dims=3):
    root = torch.randn(dims, dims, dtype=torch.float64)
    return 0.1 * root @ root.T


@EVERY_PROCESS
def test_gaussian_denoiser_conditions_the_joint_gaussian(process):
    mean, cov = torch.randn(3, dtype=torch.float64), covariance()
    denoiser = GaussianDenoiser(process, BetaTilde(), mean, cov)
    x_t = torch.randn(5, 3, dtype=torch.float64)
    x0, mse, mean, cov = denoiser(x_t, T).x0, denoiser.mse(), mean.numpy(), cov.numpy()
    for i, t in enumerate(T.tolist()):
        alpha, sigma = process.table[t, :2].tolist()
        gain = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(3))
        expected = mean + gain @ (x_t[i].numpy() - alpha * mean)
        np.testing.assert_allclose(x0[i], expected, rtol=1e-9, atol=1e-12)
        assert mse[t].item() == pytest.approx(np.trace(cov - alpha * gain @ cov) / 3, rel=1e-7)


def test_gaussian_denoiser_of_images_with_singular_covariance():
    process, mean = PROCESSES["linear"], numbers(0.2, 0.2, 0.2, 0.2)
    denoiser = GaussianDenoiser(process, BetaTilde(), mean, torch.diag(numbers(0.3, 0.0, 0.1, 0.0)))
    x0 = denoiser(torch.randn(2, 1, 2, 2), torch.tensor([10, 900])).x0
    assert x0.shape == (2, 1, 2, 2) and x0.dtype == torch.float32
    torch.testing.assert_close(x0[:, 0, :, 1], torch.full((2, 2), 0.2))
    with pytest.raises(ValueError, match="semi-definite"):
        GaussianDenoiser(process, BetaTilde(), torch.zeros(2), torch.diag(numbers(1.0, -0.1)))


def mixture(std):
    return Mixture(
        numbers([-0.8], [0.1], [0.9]), numbers(0.2, 0.5, 0.3), std, torch.tensor([0, 1, 0])
    )


@EVERY_PROCESS
@pytest.mark.parametrize("label", [None, 0, 1])
def test_mixture_denoiser_matches_bayes_rule_on_a_grid(label, process):
    mix, x_t = mixture(0.15), torch.randn(5, 1, dtype=torch.float64)
    denoiser = MixtureDenoiser(process, BetaTilde(), mix)
    cond = Condition() if label is None else Condition(torch.full((5,), label))
    grid = np.linspace(-4, 4, 200_001)
    components = zip(*(part.flatten().tolist() for part in (mix[0], mix[1], mix[3])), strict=True)
    prior = sum(
        weight * np.exp(-((grid - mean) ** 2) / (2 * 0.15**2)) / 0.15 / np.sqrt(2 * np.pi)
        for mean, weight, component_label in components
        if label in (None, component_label)
    )
    for i, t in enumerate(T.tolist()):
        alpha, sigma = process.table[t, :2].tolist()
        log_likelihood = -((x_t[i].item() - alpha * grid) ** 2) / (2 * sigma**2)
        posterior = prior * np.exp(log_likelihood - log_likelihood.max())
        expected = (posterior * grid).sum() / posterior.sum()
        assert denoiser(x_t, T, cond).x0[i].item() == pytest.approx(expected, abs=1e-6), t
        variance = (posterior * (grid - expected) ** 2).sum() / posterior.sum()
        mse = denoiser.mse(x_t, T, cond)[i].item()
        assert mse == pytest.approx(variance, rel=1e-4, abs=1e-9), t
    inside = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    density = np.interp(inside[:, 0], grid, prior / (prior.sum() * (grid[1] - grid[0])))
    labels = None if label is None else torch.full((9,), label)
    p = denoiser.log_prob(inside, labels).exp()
    np.testing.assert_allclose(p, density, rtol=1e-4, atol=1e-30)


def test_finite_data_set_is_a_weighted_mean_of_points():
    process, points = PROCESSES["linear"], torch.randn(50, 6, dtype=torch.float64)
    weights = torch.full((50,), 1 / 50, dtype=torch.float64)
    mix = Mixture(points, weights, 0.0, torch.arange(50) % 2)
    denoiser, x_t = MixtureDenoiser(process, BetaTilde(), mix), torch.randn(5, 6).double()
    odd = Condition(torch.ones(5, dtype=torch.long))
    for cond, subset in ((Condition(), points), (odd, points[1::2])):
        x0 = denoiser(x_t, T, cond).x0
        for i, t in enumerate(T.tolist()):
            alpha, sigma = process.table[t, :2].tolist()
            logits = -((x_t[i] - alpha * subset) ** 2).sum(1) / (2 * sigma**2)
            torch.testing.assert_close(x0[i], logits.softmax(0) @ subset)


def test_limits_are_the_nearest_point_and_the_mean():
    process, points = PROCESSES["cosine"], torch.randn(50, 6, dtype=torch.float64)
    weights = torch.full((50,), 1 / 50, dtype=torch.float64)
    denoiser = MixtureDenoiser(process, BetaTilde(), Mixture(points, weights, 0.0, None))
    t = torch.ones(50, dtype=torch.long)
    x_1 = process.diffuse(points, torch.randn_like(points), t)
    torch.testing.assert_close(denoiser(x_1, t).x0, points)
    far = denoiser(torch.randn(3, 6, dtype=torch.float64), torch.full((3,), 1000)).x0
    torch.testing.assert_close(far, points.mean(0).expand(3, 6), rtol=0, atol=1e-2)


def test_dropped_rows_use_all_components():
    denoiser = MixtureDenoiser(PROCESSES["linear"], BetaTilde(), mixture(0.1))
    x_t, label = torch.randn(5, 1, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0])
    dropped = torch.tensor([True, False, False, True, True])
    x0 = denoiser(x_t, T, Condition(label, dropped=dropped)).x0
    torch.testing.assert_close(x0[dropped], denoiser(x_t, T).x0[dropped])
    torch.testing.assert_close(x0[~dropped], denoiser(x_t, T, Condition(label)).x0[~dropped])


def test_mixture_samples_have_its_moments():
    mix = mixture(0.15)
    x, component = mix.sample(200_000, torch.Generator().manual_seed(0))
    assert (component.bincount() / len(x)).tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.005)
    assert x.square().mean().item() == pytest.approx(mix.second_moment(), rel=0.01)
    assert (x - mix.means[component]).std().item() == pytest.approx(0.15, rel=0.01)


@pytest.mark.parametrize("sampler", [DDPM(clip=None), DDIM(steps=9, clip=None, eta=0.6)])
def test_a_diagonal_covariance_propagates_as_the_matrix(sampler, monkeypatch):
    process, mean, diagonal = PROCESSES["linear"], numbers(0.1, -0.2, 0.0), numbers(0.3, 0.04, 1e-4)
    monkeypatch.setattr(analytic_propagation, "MAX_PROBES", 3 * 100)  # several batches of 100 steps
    matrix = propagate(sampler, GaussianDenoiser(process, Beta(), mean, torch.diag(diagonal)))
    monkeypatch.undo()
    vector = propagate(sampler, GaussianDenoiser(process, Beta(), mean, diagonal))
    torch.testing.assert_close(vector[0], matrix[0])
    torch.testing.assert_close(torch.diag(vector[1]), matrix[1])


@EVERY_PROCESS
@pytest.mark.parametrize("sampler", [DDPM(steps=9, clip=None), DDIM(steps=9, clip=None, eta=0.6)])
def test_propagate_matches_full_matrices(sampler, process):
    # x_s = A x_t + b + C z with full matrices.
    mean, cov = torch.randn(3, dtype=torch.float64), covariance()
    denoiser = GaussianDenoiser(process, Beta(), mean, cov)
    times, mean, cov = sampler.timesteps(process), mean.numpy(), cov.numpy()
    m, P = np.zeros(3), np.eye(3) * process.table[1000, 3].item() ** 2
    for t, s in itertools.pairwise(times):
        (a_t, b_t), (a_s, b_s) = process.table[t, :2].tolist(), process.table[s, :2].tolist()
        gain = a_t * cov @ np.linalg.inv(a_t**2 * cov + b_t**2 * np.eye(3))
        offset = (np.eye(3) - a_t * gain) @ mean  # x0 = gain x_t + offset
        beta = b_t**2 - (a_t / a_s) ** 2 * b_s**2
        if isinstance(sampler, DDPM):
            coef_x0, coef_xt = a_s * beta / b_t**2, a_t / a_s * b_s**2 / b_t**2
            variance = beta if s else 0.0
        else:
            variance = 0.36 * beta * b_s**2 / b_t**2
            coef_eps = np.sqrt(b_s**2 - variance)
            coef_x0, coef_xt = a_s - coef_eps * a_t / b_t, coef_eps / b_t
        step = coef_x0 * gain + coef_xt * np.eye(3)
        m, P = step @ m + coef_x0 * offset, step @ P @ step.T + variance * np.eye(3)
    found_mean, result = propagate(sampler, denoiser)
    np.testing.assert_allclose(found_mean, m, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(result, P, rtol=1e-7, atol=1e-9)


def moments_by_probing(sampler, denoiser):
    """Return moments of x_0 from its responses to x_T and to each draw of noise."""
    draws, unit = [], denoiser.axes.sum(1)
    sampler(denoiser, unit[None], noise=lambda x: draws.append(x) or torch.zeros_like(x))
    probes = torch.zeros(len(draws) + 2, len(unit), dtype=torch.float64)
    probes[1], row = unit, iter(range(2, len(draws) + 2))

    def probe(x):
        z = torch.zeros_like(x)
        z[next(row)] = unit
        return z

    x0 = sampler(denoiser, sampler.prior(denoiser.process, probes), noise=probe)
    responses = (x0[1:] - x0[0]) @ denoiser.axes
    return x0[0], (denoiser.axes * responses.square().sum(0)) @ denoiser.axes.T


@EVERY_PROCESS
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(),
        DDIM(eta=0.6),
        DDIM(eta=1.0, sigma_hat=True),
        Heun(),
        DPMSolver(),
        Langevin(corrections=2),
        PredictorCorrector(),
        EDM(s_churn=2.0, s_tmax=5.0),
        DPMSolverSDE(),
        DPMSolver3M(),
        UniPC(),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_propagate_matches_probing_for_every_sampler(sampler, steps, process):
    denoiser = GaussianDenoiser(process, Beta(), torch.randn(3, dtype=torch.float64), covariance())
    steps = max(steps, sampler.min_steps)
    sampler = replace(sampler, steps=steps, clip=None, spacing="quadratic_full")
    pairs = zip(propagate(sampler, denoiser), moments_by_probing(sampler, denoiser), strict=True)
    for result, expected in pairs:
        torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-10)


@EVERY_PROCESS
def test_ddpm_with_optimal_variance_is_exact_for_a_gaussian(process):
    # Equal variances, so that one variance is optimal for all dimensions.
    std, dims = 0.4, 2
    zero, cov = numbers(0.0, 0.0), std**2 * torch.eye(dims, dtype=torch.float64)
    plain = GaussianDenoiser(process, BetaTilde(), zero, cov)
    denoiser = GaussianDenoiser(process, Analytic(plain.mse()), zero, cov)
    _, result = propagate(DDPM(steps=25, clip=None), denoiser)
    mse = plain.mse()[1].item()  # the last step returns the mean, without the variance at t = 1
    assert result.diagonal().tolist() == pytest.approx([std**2 - mse] * dims, rel=0.002)
    assert torch.allclose(result, torch.diag(result.diagonal()))


def test_optimal_variance_output_reaches_the_optimum_in_range():
    process, times = PROCESSES["linear"], list(range(1000, -1, -50))
    denoiser = GaussianDenoiser(process, BetaTilde(), numbers(0.0), numbers([0.25]))
    optimum = Analytic(denoiser.mse())
    t, s = torch.tensor(times[:-2]), torch.tensor(times[1:-1])
    output = optimal_variance_output(process, optimum, times)[:-1]
    like = torch.zeros(len(t), dtype=torch.float64)
    assert output.abs().max() < 1
    torch.testing.assert_close(
        LearnedRange().log_var(process, output, like, t, s),
        optimum.log_var(process, None, like, t, s),
    )


@pytest.mark.parametrize("times", [[1000, 0], [1000, 900, 3, 2, 1, 0]])
def test_optimal_range_is_learned_range_at_the_optimal_output(times):
    process = PROCESSES["cosine"]
    denoiser = GaussianDenoiser(process, BetaTilde(), numbers(0.0), numbers([0.25]))
    optimum = Analytic(100 * denoiser.mse())  # often out of the range
    t, s = torch.tensor(times[:-1]), torch.tensor(times[1:])
    like = torch.zeros(len(t), dtype=torch.float64)
    output = optimal_variance_output(process, optimum, times)
    log_var = LearnedRange().log_var(process, output, like, t, s)
    torch.testing.assert_close(OptimalRange(optimum).log_var(process, None, like, t, s), log_var)
