"""Variances of a reverse step: their limits, and the optimum of a Gaussian."""

import pytest
import torch

from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, geometric, linear
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde, LearnedDiagonal, LearnedRange

SCHEDULES = {
    "linear": lambda steps: linear(steps, rescale=False),
    "cosine": cosine,
    "geometric": geometric,
}
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
VARIANCES = {
    "beta": lambda mse: Beta(),
    "beta_tilde": lambda mse: BetaTilde(),
    "range": lambda mse: LearnedRange(),
    "diagonal": lambda mse: LearnedDiagonal(),
    "analytic": Analytic,
}


def pairs(steps):
    return torch.tensor([(t, s) for t in range(1, steps + 1) for s in range(t)]).T


def gaussian_mse(process, variance):
    """Return the MSE of E[x_0 | x_t] for x_0 ~ N(0, variance) and every t: precisions add."""
    alpha, sigma = process.table[:, 0], process.table[:, 1]
    return 1 / (1 / variance + alpha**2 / sigma**2)


@EVERY_SCHEDULE
@pytest.mark.parametrize("steps", [1, 2, 3, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variance", VARIANCES)
def test_log_variance_is_finite_for_every_pair(variance, dtype, steps, schedule):
    process, (t, s) = ForwardProcess(schedule(steps)), pairs(steps)
    x_t, output = torch.randn(2, len(t), 1, 2, 2, dtype=dtype)
    variance = VARIANCES[variance](gaussian_mse(process, 0.25))
    log_var = variance.log_var(process, output, x_t, t, s)
    assert log_var.dtype == dtype and torch.isfinite(log_var).all()
    assert torch.broadcast_shapes(log_var.shape, x_t.shape) == x_t.shape
    assert torch.isfinite(log_var.neg().exp()).all() and (log_var.exp() > 0).all()


def test_learned_variances_double_the_outputs():
    assert [VARIANCES[name](None).outputs for name in VARIANCES] == [1, 1, 2, 2, 1]


@EVERY_SCHEDULE
def test_beta_and_beta_tilde_are_the_bounds(schedule):
    process = ForwardProcess(schedule(30))
    t, s = pairs(30)
    upper, lower = (
        variance.log_var(process, None, process.table[t], t, s)[:, 0]
        for variance in (Beta(), BetaTilde())
    )
    inside = s > 0
    torch.testing.assert_close(upper[inside].exp(), process.beta(t, s)[inside])
    torch.testing.assert_close(lower[inside].exp(), process.beta_tilde(t, s)[inside])
    assert (lower < upper)[inside].all()
    assert torch.equal(upper[~inside], lower[~inside]), "the step to the data uses beta_tilde"


def test_beta_matches_the_papers_on_the_full_chain():
    process, t = ForwardProcess(linear()), torch.arange(2, 1001)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    like = torch.zeros(999, 1, dtype=torch.float64)
    upper, lower = (
        variance.log_var(process, None, like, t, t - 1)[:, 0].exp()
        for variance in (Beta(), BetaTilde())
    )
    torch.testing.assert_close(upper, betas[1:], rtol=1e-9, atol=0)
    beta_tilde = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])  # Ho et al., eq. 7
    torch.testing.assert_close(lower, beta_tilde, rtol=1e-8, atol=0)


@EVERY_SCHEDULE
def test_learned_range_interpolates_and_extrapolates(schedule):
    process, (t, s) = ForwardProcess(schedule(30)), pairs(30)
    x_t = torch.randn(len(t), 3, dtype=torch.float64)
    high, low = process.beta(t, s).log()[:, None], process.log_beta_tilde(t, s)[:, None]
    middle, above, below = (high + low) / 2, 2 * high - low, 2 * low - high
    for output, expected in ((1, high), (-1, low), (0, middle), (3, above), (-3, below)):
        result = LearnedRange().log_var(process, torch.full_like(x_t, output), x_t, t, s)
        torch.testing.assert_close(result, expected.expand_as(x_t))


@EVERY_SCHEDULE
def test_learned_diagonal_scales_the_upper_bound(schedule):
    process, (t, s) = ForwardProcess(schedule(30)), pairs(30)
    output = torch.randn(len(t), 3, dtype=torch.float64)
    result = LearnedDiagonal().log_var(process, output, output, t, s)
    torch.testing.assert_close(result.exp(), process.beta(t, s)[:, None] * output.exp())


@EVERY_SCHEDULE
@pytest.mark.parametrize("std", [0.05, 0.5, 1.0, 2.0])
def test_analytic_matches_reverse_variance_of_a_gaussian(schedule, std):
    process, (t, s) = ForwardProcess(schedule(30)), pairs(30)
    analytic = Analytic(gaussian_mse(process, std**2))
    result = analytic.log_var(process, None, process.table[t], t, s)[:, 0].exp()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.table[t, :2].T, process.table[s, :2].T
    # Kalman: x_s has variance p, and x_t = gain x_s + noise of variance `added`.
    p, gain = alpha_s**2 * std**2 + sigma_s**2, alpha_t / alpha_s
    added = sigma_t**2 - gain**2 * sigma_s**2
    torch.testing.assert_close(result, p * added / (gain**2 * p + added), rtol=1e-9, atol=0)
    assert (s == 0).any()


def test_analytic_limits_are_beta_and_beta_tilde():
    process, (t, s) = ForwardProcess(cosine(30)), pairs(30)
    like = torch.zeros(len(t), 1, dtype=torch.float64)
    unit, point = (
        Analytic(gaussian_mse(process, variance)).log_var(process, None, like, t, s)[:, 0].exp()
        for variance in (1.0, 1e-16)
    )
    torch.testing.assert_close(unit, process.beta(t, s), rtol=1e-9, atol=0)
    torch.testing.assert_close(point, process.beta_tilde(t, s), rtol=0, atol=1e-12)
