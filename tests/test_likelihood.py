"""The bound: bin probabilities, single terms, and the total for analytic denoisers."""

import math

import mpmath
import numpy as np
import pytest
import torch

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
from ddpm_lab.diffusion.analytic_propagation import analytic_vlb, optimal_variance_output
from ddpm_lab.diffusion.denoiser import BaseDenoiser, Estimate
from ddpm_lab.diffusion.gaussian import Gaussian
from ddpm_lab.diffusion.likelihood import prior_term, vlb_term, vlb_terms
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, geometric, linear
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde, LearnedDiagonal, LearnedRange

WIDTH = 2 / 255
BINS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
SIGMAS = {"1e-4": 1e-4, "a third of a bin": WIDTH / 3, "a bin": WIDTH, "0.05": 0.05, "2": 2.0}
PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, cosine, geometric)}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
EVERY_SIGMA = pytest.mark.parametrize("sigma", SIGMAS.values(), ids=SIGMAS)


def normal(mean, sigma, dtype=torch.float64):
    log_var = torch.tensor(2 * math.log(sigma), dtype=dtype)
    return Gaussian(torch.as_tensor(mean, dtype=dtype), log_var)


def discretized_log_likelihood(x, mean, sigma):
    """Evaluate with 60 digits."""
    with mpmath.workdps(60):
        middle, half = mpmath.mpf(x) - mean, mpmath.mpf(WIDTH) / 2
        low = -mpmath.inf if x < -1 + WIDTH / 2 else (middle - half) / sigma
        high = mpmath.inf if x > 1 - WIDTH / 2 else (middle + half) / sigma
        if low > 0:  # the upper tail is small; the lower one is 1 to sixty digits
            low, high = -high, -low

        def cdf(z):
            return mpmath.erfc(-z / mpmath.sqrt(2)) / 2

        return float(mpmath.log(cdf(high) - cdf(low)))


@EVERY_SIGMA
def test_discretized_log_likelihood_matches_mpmath(sigma):
    for x in BINS[[0, 1, 60, 127, 200, 254, 255]]:
        for shift in (0.0, 0.4 * WIDTH, -0.5 * WIDTH, 0.6 * WIDTH, -3 * WIDTH, 0.3, -0.7):
            mean = x + shift
            result = normal(mean, sigma).discretized_log_likelihood(x, WIDTH).item()
            expected = discretized_log_likelihood(x.item(), mean.item(), sigma)
            assert result == pytest.approx(expected, rel=1e-9, abs=1e-7), (x, shift)


@EVERY_SIGMA
@pytest.mark.parametrize("mean", [-1.5, -1.0, 0.0, 0.333, 0.9999])
def test_bins_sum_to_1(mean, sigma):
    mass = normal(mean, sigma).discretized_log_likelihood(BINS, WIDTH).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)


@EVERY_SIGMA
def test_discretized_log_likelihood_is_finite_in_float32(sigma):
    x, mean = torch.meshgrid(BINS.float()[::15], torch.linspace(-3, 3, 41), indexing="ij")
    mean = mean.clone().requires_grad_()
    log_var = torch.full_like(mean, 2 * math.log(sigma)).requires_grad_()
    mass = Gaussian(mean, log_var).discretized_log_likelihood(x, WIDTH)
    mass.sum().backward()
    assert all(torch.isfinite(each).all() for each in (mass, mean.grad, log_var.grad))


def test_discretized_log_likelihood_gradient():
    x = BINS[[0, 3, 128, 255]]
    for sigma in (0.002, 0.02, 1.0):
        leaves = [x + 0.003, torch.full_like(x, 2 * math.log(sigma))]
        assert torch.autograd.gradcheck(
            lambda mean, log_var: Gaussian(mean, log_var).discretized_log_likelihood(x, WIDTH),
            [leaf.requires_grad_() for leaf in leaves],
        )


def test_kl_and_log_prob_match_torch():
    p, q = (
        Gaussian(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64))
        for _ in range(2)
    )
    x = torch.randn(5, 3, dtype=torch.float64)
    normals = [torch.distributions.Normal(each.mean, (each.log_var / 2).exp()) for each in (p, q)]
    torch.testing.assert_close(p.kl(q), torch.distributions.kl_divergence(*normals))
    torch.testing.assert_close(q.log_prob(x), normals[1].log_prob(x))


class ConstantDenoiser(BaseDenoiser):
    """A denoiser with a constant estimate."""

    def __init__(self, process, variance, x0, variance_output):
        super().__init__(process, variance, supports_cfg=False)
        self.constant = Estimate(x0, variance_output)

    def forward(self, x_t, t, cond=None):
        return self.constant


def by_hand(process, name, x0, estimate, variance_output, x_t, t, s):
    """Return the term in bits/dim by the papers' formulas, pixel by pixel, in numpy."""
    (a_t, b_t), (a_s, b_s) = process.table[t, :2].tolist(), process.table[s, :2].tolist()
    gain = a_t / a_s
    beta = b_t**2 - gain**2 * b_s**2
    tilde = beta * b_s**2 / b_t**2

    def mean(x):
        return (a_s * beta * x + gain * b_s**2 * x_t) / b_t**2

    if s > 0:
        low = np.log(tilde)
    else:
        a_u, b_u = process.table[min(2 * t, process.steps), :2].tolist()
        tilde_u = (b_u**2 - (a_u / a_t) ** 2 * b_t**2) * b_t**2 / b_u**2
        low = np.log(tilde_u if t < process.steps else beta)
    high = np.log(beta)
    log_var = {
        "beta_tilde": low,
        "beta": high if s > 0 else low,
        "learned_range": (variance_output + 1) / 2 * high + (1 - variance_output) / 2 * low,
        "learned_diagonal": high + variance_output,
    }[name] + np.zeros_like(x0)
    if s > 0:
        ratio = (tilde + (mean(x0) - mean(estimate)) ** 2) / np.exp(log_var)
        nats = 0.5 * (log_var - np.log(tilde) + ratio - 1)
    else:
        pixels = zip(x0.flat, mean(estimate).flat, np.exp(log_var / 2).flat, strict=True)
        nats = -np.array([discretized_log_likelihood(*pixel) for pixel in pixels])
    return nats.mean() / np.log(2)


VARIANCES = {
    "beta": Beta(),
    "beta_tilde": BetaTilde(),
    "learned_range": LearnedRange(),
    "learned_diagonal": LearnedDiagonal(),
}


@EVERY_PROCESS
@pytest.mark.parametrize("name", VARIANCES)
def test_vlb_term_matches_the_papers_formulas(name, process):
    full_chain = [(1000, 999), (500, 499), (2, 1), (1, 0)]
    for t, s in [*full_chain, (1000, 750), (320, 40), (41, 1), (40, 0), (700, 0), (1000, 0)]:
        x0 = BINS[torch.randint(256, (2, 1, 3, 3))]
        estimate = (x0 + 0.02 * torch.randn_like(x0)).clamp(-1, 1)
        variance_output = torch.rand_like(x0) * 2 - 1
        at_t, at_s = torch.tensor([t, t]), torch.tensor([s, s])
        x_t = process.diffuse(x0, torch.randn_like(x0), at_t)
        denoiser = ConstantDenoiser(process, VARIANCES[name], estimate, variance_output)
        result = vlb_term(denoiser, denoiser(x_t, at_t), x0, x_t, at_t, at_s, WIDTH)
        for i in range(2):
            images = (image[i].numpy() for image in (x0, estimate, variance_output, x_t))
            expected = by_hand(process, name, *images, t, s)
            assert result[i].item() == pytest.approx(expected, rel=1e-7, abs=1e-7), (t, s)


def test_vlb_term_of_mixed_batch():
    process = PROCESSES["linear"]
    x0 = BINS[torch.randint(256, (3, 3, 2, 2))]
    estimate, x_t = 0.1 * torch.randn(2, 3, 3, 2, 2, dtype=torch.float64)
    t, s = torch.tensor([1, 500, 30]), torch.tensor([0, 499, 0])
    denoiser = ConstantDenoiser(process, Beta(), estimate, None)
    terms = vlb_term(denoiser, denoiser(x_t, t), x0, x_t, t, s, WIDTH)
    for i in range(3):
        row = slice(i, i + 1)
        rows = Estimate(estimate[row]), x0[row], x_t[row], t[row], s[row]
        torch.testing.assert_close(terms[row], vlb_term(denoiser, *rows, WIDTH))


@EVERY_PROCESS
def test_prior_term_matches_torch(process):
    x0, t = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1000, 600, 10])
    alpha, sigma = (process.table[t, i, None] for i in (0, 1))
    normal = torch.distributions.Normal
    posterior = normal(alpha * x0, sigma.expand_as(x0))
    prior = normal(torch.zeros_like(x0), torch.hypot(alpha, sigma).expand_as(x0))
    expected = torch.distributions.kl_divergence(posterior, prior).mean(1) / math.log(2)
    torch.testing.assert_close(prior_term(process, x0, t), expected)


def gaussian(process, variance, std=0.5):
    mean, variances = torch.tensor([[0.1, -0.2], [std**2, 0.3]], dtype=torch.float64)
    return GaussianDenoiser(process, variance, mean, torch.diag(variances))


@EVERY_PROCESS
@pytest.mark.parametrize("steps", [8, 50])
@pytest.mark.parametrize("variance", [Beta(), BetaTilde()])
def test_vlb_terms_average_to_the_analytic_bound(variance, steps, process):
    denoiser = gaussian(process, variance)
    times, count = timesteps(1000, steps, "uniform"), 20_000
    z, mse = torch.randn(count, 2, dtype=torch.float64), denoiser.mse()
    x0 = denoiser.mean + z * denoiser.eigenvalues.sqrt() @ denoiser.axes.T
    expected = analytic_vlb(process, variance, times, mse, denoiser.second_moment())

    def check(bits, expected):
        error = bits.std().item() / count**0.5
        assert bits.mean().item() == pytest.approx(expected, abs=5 * error + 1e-12)

    terms = vlb_terms(denoiser, x0, times, clip=None, bin_width=None)
    for term, bits in zip(terms, expected["terms"].tolist(), strict=True):
        check(term.bits, bits)
        assert term.square_error.mean().item() == pytest.approx(mse[term.t].item(), rel=0.06)
    check(prior_term(process, x0, torch.full((count,), 1000)), expected["L_T"].item())


@EVERY_PROCESS
@pytest.mark.parametrize("steps", [1, 7, 1000])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
def test_bound_with_optimal_variance_is_the_entropy(std, steps, process):
    # Every reverse step is then exact, and the gap of the bound is KL(q(x_T) || prior).
    mean, variance = torch.tensor([0.0, std**2], dtype=torch.float64).view(2, 1)
    denoiser = GaussianDenoiser(process, BetaTilde(), mean, variance[:, None])
    times, mse = timesteps(1000, steps, "uniform"), denoiser.mse()
    bound = analytic_vlb(process, Analytic(mse), times, mse, denoiser.second_moment())
    alpha, sigma, _, scale = process.table[1000].tolist()
    ratio = ((alpha * std) ** 2 + sigma**2) / scale**2
    gap = 0.5 * (ratio - 1 - math.log(ratio)) / math.log(2)
    total = (bound["L_T"] + bound["terms"].sum()).item()
    entropy = 0.5 * math.log2(2 * math.pi * math.e * std**2)
    assert denoiser.entropy() == pytest.approx(entropy, abs=1e-12)
    assert total - entropy == pytest.approx(gap, abs=1e-9)


@EVERY_PROCESS
def test_bounds_are_ordered_by_flexibility_of_the_variance(process):
    denoiser, times = gaussian(process, BetaTilde()), timesteps(1000, 20, "uniform")
    mse = denoiser.mse()
    optimum = Analytic(mse)
    output = optimal_variance_output(process, optimum, times)

    def total(variance, output=None):
        bound = analytic_vlb(process, variance, times, mse, denoiser.second_moment(), output)
        return (bound["L_T"] + bound["terms"].sum()).item()

    best, learned = total(optimum), total(LearnedRange(), output)
    assert best <= learned + 1e-12 and learned <= min(total(Beta()), total(BetaTilde())) + 1e-12
    for nudge in (-0.05, 0.05):
        assert total(LearnedRange(), (output + nudge).clamp(-1, 1)) >= learned


def test_vlb_terms_clip_the_estimate():
    process = PROCESSES["cosine"]
    denoiser = ConstantDenoiser(process, BetaTilde(), torch.full((4, 1, 2, 2), 7.0), None)
    x0 = torch.full((4, 1, 2, 2), 0.8)
    (clipped,) = vlb_terms(denoiser, x0, [300, 0], bin_width=WIDTH)
    (unbounded,) = vlb_terms(denoiser, x0, [300, 0], bin_width=WIDTH, clip=None)
    assert clipped.square_error.tolist() == pytest.approx([0.04] * 4)
    assert clipped.bits.dtype == torch.float64
    assert unbounded.square_error.tolist() == pytest.approx([6.2**2] * 4)
    assert (unbounded.bits > clipped.bits).all()
