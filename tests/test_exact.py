"""Exact denoisers against Bayes' rule on a grid, by sampling and by conditioning the joint Gaussian."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpm_lab.diffusion import analytic_propagation
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from ddpm_lab.diffusion.analytic_propagation import OptimalRange
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.langevin import Langevin, PredictorCorrector
from ddpm_lab.diffusion.ode_solvers import DPMSolver, Heun
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM, DDPM
from ddpm_lab.diffusion.schedules import cosine, geometric, linear
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde, LearnedRange

PROCESSES = {
    "linear": ForwardProcess(linear()),
    "cosine": ForwardProcess(cosine()),
    "geometric": ForwardProcess(geometric()),
}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
T = torch.tensor([1, 20, 300, 600, 999])


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def covariance(dims=3):
    root = torch.randn(dims, dims, dtype=torch.float64)
    return 0.1 * root @ root.T


@EVERY_PROCESS
def test_a_gaussian_is_conditioned_as_the_joint_law_says(process):
    mean, cov = torch.randn(3, dtype=torch.float64), covariance()
    denoiser, x_t = (
        GaussianDenoiser(process, BetaTilde(), mean, cov),
        torch.randn(5, 3, dtype=torch.float64),
    )
    found, mse = denoiser(x_t, T).x0.numpy(), denoiser.mse().numpy()
    for i, t in enumerate(T.tolist()):
        alpha, noise = process.table[t, :2].tolist()
        joint = alpha**2 * cov.numpy() + noise**2 * np.eye(3)
        gain = alpha * cov.numpy() @ np.linalg.inv(joint)
        expected = mean.numpy() + gain @ (x_t[i].numpy() - alpha * mean.numpy())
        np.testing.assert_allclose(found[i], expected, rtol=1e-9, atol=1e-12)
        assert mse[t] == pytest.approx(
            np.trace(cov.numpy() - alpha * gain @ cov.numpy()) / 3, rel=1e-7
        )


def test_a_covariance_may_be_singular_and_images_are_flattened():
    cov = torch.diag(numbers(0.3, 0.0, 0.1, 0.0))
    denoiser = GaussianDenoiser(
        PROCESSES["linear"], BetaTilde(), torch.full((4,), 0.2, dtype=torch.float64), cov
    )
    said = denoiser(torch.randn(2, 1, 2, 2), torch.tensor([10, 900])).x0
    assert said.shape == (2, 1, 2, 2) and said.dtype == torch.float32
    torch.testing.assert_close(said[:, 0, :, 1], torch.full((2, 2), 0.2))
    with pytest.raises(ValueError, match="semi-definite"):
        GaussianDenoiser(
            PROCESSES["linear"], BetaTilde(), torch.zeros(2), torch.diag(numbers(1.0, -0.1))
        )


def mixture(std):
    return Mixture(
        numbers([-0.8], [0.1], [0.9]), numbers(0.2, 0.5, 0.3), std, torch.tensor([0, 1, 0])
    )


@EVERY_PROCESS
@pytest.mark.parametrize("label", [None, 0, 1])
def test_a_mixture_is_bayes_rule_on_a_grid(label, process):
    mix = mixture(0.15)
    denoiser, x_t = (
        MixtureDenoiser(process, BetaTilde(), mix),
        torch.randn(5, 1, dtype=torch.float64),
    )
    cond = Condition() if label is None else Condition(torch.full((5,), label))
    grid = np.linspace(-4, 4, 200_001)
    parts = [
        w * np.exp(-((grid - m) ** 2) / (2 * 0.15**2)) / 0.15 / np.sqrt(2 * np.pi)
        for w, m, of in zip(
            mix.weights.tolist(), mix.means[:, 0].tolist(), mix.labels.tolist(), strict=True
        )
        if label in (None, of)
    ]
    prior = np.sum(parts, axis=0)
    for i, t in enumerate(T.tolist()):
        alpha, noise = process.table[t, :2].tolist()
        log_likelihood = -((x_t[i].item() - alpha * grid) ** 2) / (2 * noise**2)
        posterior = prior * np.exp(log_likelihood - log_likelihood.max())
        expected = (posterior * grid).sum() / posterior.sum()
        assert denoiser(x_t, T, cond).x0[i].item() == pytest.approx(expected, abs=1e-6), t
        left = (posterior * (grid - expected) ** 2).sum() / posterior.sum()
        assert denoiser.mse(x_t, T, cond)[i].item() == pytest.approx(left, rel=1e-4, abs=1e-9), t
    inside = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    density = np.interp(inside[:, 0], grid, prior / (prior.sum() * (grid[1] - grid[0])))
    of = None if label is None else torch.full((9,), label)
    np.testing.assert_allclose(denoiser.log_prob(inside, of).exp(), density, rtol=1e-4, atol=1e-30)


def test_a_finite_set_is_the_weighted_mean_of_its_points():
    process, points = PROCESSES["linear"], torch.randn(50, 6, dtype=torch.float64)
    weights = torch.full((50,), 1 / 50, dtype=torch.float64)
    denoiser = MixtureDenoiser(
        process, BetaTilde(), Mixture(points, weights, 0.0, torch.arange(50) % 2)
    )
    x_t = torch.randn(5, 6, dtype=torch.float64)
    for cond, some in (
        (Condition(), points),
        (Condition(torch.ones(5, dtype=torch.long)), points[1::2]),
    ):
        found = denoiser(x_t, T, cond).x0
        for i, t in enumerate(T.tolist()):
            alpha, noise = process.table[t, :2].tolist()
            log = -((x_t[i] - alpha * some) ** 2).sum(1) / (2 * noise**2)
            torch.testing.assert_close(
                found[i], (log - log.max()).exp() @ some / (log - log.max()).exp().sum()
            )


def test_near_the_data_it_is_the_nearest_point_and_in_noise_the_mean():
    process, points = PROCESSES["cosine"], torch.randn(50, 6, dtype=torch.float64)
    weights = torch.full((50,), 1 / 50, dtype=torch.float64)
    denoiser = MixtureDenoiser(process, BetaTilde(), Mixture(points, weights, 0.0, None))
    x_1 = process.diffuse(points, torch.randn_like(points), torch.ones(50, dtype=torch.long))
    torch.testing.assert_close(denoiser(x_1, torch.ones(50, dtype=torch.long)).x0, points)
    far = denoiser(torch.randn(3, 6, dtype=torch.float64), torch.full((3,), 1000)).x0
    torch.testing.assert_close(far, points.mean(0).expand(3, 6), rtol=0, atol=1e-2)


def test_rows_whose_label_was_dropped_hear_all_components():
    process = PROCESSES["linear"]
    denoiser, x_t = (
        MixtureDenoiser(process, BetaTilde(), mixture(0.1)),
        torch.randn(5, 1, dtype=torch.float64),
    )
    label = torch.tensor([0, 1, 0, 1, 0])
    dropped = torch.tensor([True, False, False, True, True])
    found = denoiser(x_t, T, Condition(label, dropped=dropped)).x0
    torch.testing.assert_close(found[dropped], denoiser(x_t, T).x0[dropped])
    torch.testing.assert_close(found[~dropped], denoiser(x_t, T, Condition(label)).x0[~dropped])


def test_samples_of_a_mixture_have_its_moments():
    mix = mixture(0.15)
    x, component = mix.sample(200_000, torch.Generator().manual_seed(0))
    assert (component.bincount() / len(x)).tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.005)
    assert x.square().mean().item() == pytest.approx(mix.second_moment(), rel=0.01)
    assert (x - mix.means[component]).std().item() == pytest.approx(0.15, rel=0.01)


@EVERY_PROCESS
@pytest.mark.parametrize("sampler", [DDPM(steps=9, clip=None), DDIM(steps=9, clip=None, eta=0.6)])
def test_the_law_of_a_walk_is_that_of_its_matrices(sampler, process):
    # x_s = A x_t + b + C z, multiplied out with full matrices.
    mean, cov = torch.randn(3, dtype=torch.float64), covariance()
    denoiser = GaussianDenoiser(process, Beta(), mean, cov)
    times = sampler.timesteps(1000)
    m, P = np.zeros(3), np.eye(3) * process.table[1000, 3].item() ** 2
    for t, s in itertools.pairwise(times):
        (a_t, b_t), (a_s, b_s) = process.table[t, :2].tolist(), process.table[s, :2].tolist()
        gain = a_t * cov.numpy() @ np.linalg.inv(a_t**2 * cov.numpy() + b_t**2 * np.eye(3))
        offset = (np.eye(3) - a_t * gain) @ mean.numpy()  # x0 = gain x_t + offset
        beta = b_t**2 - (a_t / a_s) ** 2 * b_s**2
        if isinstance(sampler, DDPM):
            of_x0, of_x_t, variance = (
                a_s * beta / b_t**2,
                a_t / a_s * b_s**2 / b_t**2,
                beta if s else 0.0,
            )
        else:
            variance = 0.36 * beta * b_s**2 / b_t**2
            of_eps = np.sqrt(b_s**2 - variance)
            of_x0, of_x_t = a_s - of_eps * a_t / b_t, of_eps / b_t
        step = of_x0 * gain + of_x_t * np.eye(3)
        m, P = step @ m + of_x0 * offset, step @ P @ step.T + variance * np.eye(3)
    found_mean, found = analytic_propagation.propagate(sampler, denoiser)
    np.testing.assert_allclose(found_mean, m, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found, P, rtol=1e-7, atol=1e-9)


def probed(sampler, denoiser):
    """The law by brute force: walks from probes, one of zeros, one with x_T alone, one for every draw of noise."""
    draws, along = [], denoiser.axes.sum(1)
    sampler(
        denoiser,
        torch.zeros_like(along)[None],
        noise=lambda x: (draws.append(x), torch.zeros_like(x))[1],
    )
    probes = torch.zeros(len(draws) + 2, len(along), dtype=torch.float64)
    probes[1], row = along, iter(range(2, len(draws) + 2))

    def probe(x):
        z = torch.zeros_like(x)
        z[next(row)] = along
        return z

    ends = sampler(denoiser, sampler.prior(denoiser.process, probes), noise=probe)
    responses = (ends[1:] - ends[0]) @ denoiser.axes
    return ends[0], (denoiser.axes * responses.square().sum(0)) @ denoiser.axes.T


@EVERY_PROCESS
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
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
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_the_law_of_every_walk_is_that_of_its_responses(sampler, steps, process):
    denoiser = GaussianDenoiser(process, Beta(), torch.randn(3, dtype=torch.float64), covariance())
    sampler = replace(sampler, steps=steps, clip=None, spacing="quadratic_full")
    for found, expected in zip(
        analytic_propagation.propagate(sampler, denoiser), probed(sampler, denoiser), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@EVERY_PROCESS
def test_with_the_optimal_variance_ancestral_sampling_of_a_gaussian_is_exact(process):
    # One std in every dimension, so that one variance is optimal for all: only x_T differs from the data's.
    std, dims = 0.4, 2
    zero, cov = (
        torch.zeros(dims, dtype=torch.float64),
        std**2 * torch.eye(dims, dtype=torch.float64),
    )
    plain = GaussianDenoiser(process, BetaTilde(), zero, cov)
    denoiser = GaussianDenoiser(process, Analytic(plain.mse()), zero, cov)
    _, found = analytic_propagation.propagate(DDPM(steps=25, clip=None), denoiser)
    mse = plain.mse()[
        1
    ].item()  # the last step shows the mean, which lacks the variance that is left at t = 1
    assert found.diagonal().tolist() == pytest.approx([std**2 - mse] * dims, rel=0.002)
    assert torch.allclose(found, torch.diag(found.diagonal()))


def test_the_optimal_spread_lands_on_the_optimum_where_the_range_holds_it():
    process, times = PROCESSES["linear"], list(range(1000, -1, -50))
    denoiser = GaussianDenoiser(process, BetaTilde(), numbers(0.0), numbers([0.25]))
    optimum = Analytic(denoiser.mse())
    t, s = torch.tensor(times[:-2]), torch.tensor(times[1:-1])
    variance_output = analytic_propagation.optimal_variance_output(process, optimum, times)[:-1]
    like = torch.zeros(len(t), dtype=torch.float64)
    assert variance_output.abs().max() < 1
    torch.testing.assert_close(
        LearnedRange().log_var(process, variance_output, like, t, s),
        optimum.log_var(process, None, like, t, s),
    )


@pytest.mark.parametrize("times", [[1000, 0], [1000, 900, 3, 2, 1, 0]])
def test_the_optimal_range_is_a_learned_range_that_is_told_the_optimal_spread(times):
    process = PROCESSES["cosine"]
    optimum = Analytic(
        100 * GaussianDenoiser(process, BetaTilde(), numbers(0.0), numbers([0.25])).mse()
    )  # often out
    t, s = torch.tensor(times[:-1]), torch.tensor(times[1:])
    like = torch.zeros(len(t), dtype=torch.float64)
    told = LearnedRange().log_var(
        process, analytic_propagation.optimal_variance_output(process, optimum, times), like, t, s
    )
    torch.testing.assert_close(OptimalRange(optimum).log_var(process, None, like, t, s), told)
