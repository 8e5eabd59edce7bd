"""The bound: the mass of a bin, each term against an evaluation of its own, and the whole of it on exact denoisers."""

import math

import mpmath
import numpy as np
import pytest
import torch

from ddpm_lab.diffusion import analytic_propagation
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
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
PROCESSES = {
    "linear": ForwardProcess(linear()),
    "cosine": ForwardProcess(cosine()),
    "geometric": ForwardProcess(geometric()),
}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
EVERY_SIGMA = pytest.mark.parametrize("sigma", SIGMAS.values(), ids=SIGMAS)


def normal(mean, sigma, dtype=torch.float64):
    return Gaussian(
        torch.as_tensor(mean, dtype=dtype), torch.tensor(2 * math.log(sigma), dtype=dtype)
    )


def discretized_log_likelihood(x, mean, sigma):
    """With as many digits as it takes."""
    with mpmath.workdps(60):
        low = (
            -mpmath.inf
            if x < -1 + WIDTH / 2
            else (mpmath.mpf(x) - mpmath.mpf(WIDTH) / 2 - mean) / sigma
        )
        high = (
            mpmath.inf
            if x > 1 - WIDTH / 2
            else (mpmath.mpf(x) + mpmath.mpf(WIDTH) / 2 - mean) / sigma
        )
        if low > 0:  # the upper tail is small; the lower is 1 to sixty digits
            low, high = -high, -low

        def cdf(z):
            return mpmath.erfc(-z / mpmath.sqrt(2)) / 2

        return float(mpmath.log(cdf(high) - cdf(low)))


@EVERY_SIGMA
def test_the_mass_of_a_bin_is_right_to_the_sixth_digit_however_far_or_narrow(sigma):
    for x in BINS[[0, 1, 60, 127, 200, 254, 255]]:
        for shift in (0.0, 0.4 * WIDTH, -0.5 * WIDTH, 0.6 * WIDTH, -3 * WIDTH, 0.3, -0.7):
            mean = x + shift
            found = normal(mean, sigma).discretized_log_likelihood(x, WIDTH).item()
            assert found == pytest.approx(
                discretized_log_likelihood(x.item(), mean.item(), sigma), rel=1e-9, abs=1e-7
            ), (x, shift)


@EVERY_SIGMA
@pytest.mark.parametrize("mean", [-1.5, -1.0, 0.0, 0.333, 0.9999])
def test_the_bins_have_all_the_mass(mean, sigma):
    mass = normal(mean, sigma).discretized_log_likelihood(BINS, WIDTH).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)


@EVERY_SIGMA
def test_the_mass_and_its_gradients_are_finite_in_float32(sigma):
    x, mean = torch.meshgrid(BINS.float()[::15], torch.linspace(-3, 3, 41), indexing="ij")
    mean = mean.clone().requires_grad_()
    log_var = torch.full_like(mean, 2 * math.log(sigma)).requires_grad_()
    mass = Gaussian(mean, log_var).discretized_log_likelihood(x, WIDTH)
    mass.sum().backward()
    assert (
        torch.isfinite(mass).all()
        and torch.isfinite(mean.grad).all()
        and torch.isfinite(log_var.grad).all()
    )


def test_the_gradient_of_the_mass_is_its_slope():
    x = BINS[[0, 3, 128, 255]]
    for sigma in (0.002, 0.02, 1.0):
        leaves = [x + 0.003, torch.full_like(x, 2 * math.log(sigma))]
        assert torch.autograd.gradcheck(
            lambda mean, log_var: Gaussian(mean, log_var).discretized_log_likelihood(x, WIDTH),
            [leaf.requires_grad_() for leaf in leaves],
        )


def test_kl_and_density_are_those_of_torch():
    p, q = (
        Gaussian(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64))
        for _ in range(2)
    )
    x = torch.randn(5, 3, dtype=torch.float64)
    theirs = [torch.distributions.Normal(one.mean, (one.log_var / 2).exp()) for one in (p, q)]
    torch.testing.assert_close(p.kl(q), torch.distributions.kl_divergence(*theirs))
    torch.testing.assert_close(q.log_prob(x), theirs[1].log_prob(x))


class Guesses(BaseDenoiser):
    """A denoiser that always says the same."""

    def __init__(self, process, variance, x0, variance_output):
        super().__init__(process, variance, supports_cfg=False)
        self.said = Estimate(x0, variance_output)

    def forward(self, x_t, t, cond=None):
        return self.said


def by_hand(process, name, x0, estimate, variance_output, x_t, t, s):
    """The term in bits/dim by the formulas of the papers, pixel by pixel, in numpy."""
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
        low = (
            np.log((b_u**2 - (a_u / a_t) ** 2 * b_t**2) * b_t**2 / b_u**2)
            if t < process.steps
            else np.log(beta)
        )
    high = np.log(beta)
    log_var = {
        "beta_tilde": low,
        "beta": high if s > 0 else low,
        "learned_range": (variance_output + 1) / 2 * high + (1 - variance_output) / 2 * low,
        "learned_diagonal": high + variance_output,
    }[name] + np.zeros_like(x0)
    if s > 0:
        nats = 0.5 * (
            log_var
            - np.log(tilde)
            + (tilde + (mean(x0) - mean(estimate)) ** 2) / np.exp(log_var)
            - 1
        )
    else:
        masses = [
            discretized_log_likelihood(*pixel)
            for pixel in zip(x0.flat, mean(estimate).flat, np.exp(log_var / 2).flat, strict=True)
        ]
        nats = -np.array(masses)
    return nats.mean() / np.log(2)


VARIANCES = {
    "beta": Beta(),
    "beta_tilde": BetaTilde(),
    "learned_range": LearnedRange(),
    "learned_diagonal": LearnedDiagonal(),
}


@EVERY_PROCESS
@pytest.mark.parametrize("name", VARIANCES)
def test_a_term_is_that_of_an_evaluation_by_hand(name, process):
    pairs = [
        (1000, 999),
        (500, 499),
        (2, 1),
        (1, 0),
        (1000, 750),
        (320, 40),
        (41, 1),
        (40, 0),
        (700, 0),
        (1000, 0),
    ]
    for t, s in pairs:
        x0 = BINS[torch.randint(256, (2, 1, 3, 3))]
        estimate = (x0 + 0.02 * torch.randn_like(x0)).clamp(-1, 1)
        variance_output = torch.rand_like(x0) * 2 - 1
        at_t, at_s = torch.tensor([t, t]), torch.tensor([s, s])
        x_t = process.diffuse(x0, torch.randn_like(x0), at_t)
        denoiser = Guesses(process, VARIANCES[name], estimate, variance_output)
        found = vlb_term(denoiser, denoiser(x_t, at_t), x0, x_t, at_t, at_s, WIDTH)
        for i in range(2):
            images = (image[i].numpy() for image in (x0, estimate, variance_output, x_t))
            assert found[i].item() == pytest.approx(
                by_hand(process, name, *images, t, s), rel=1e-7, abs=1e-7
            ), (t, s)


def test_a_batch_may_mix_the_last_step_with_others():
    process = PROCESSES["linear"]
    x0, estimate, x_t = (
        BINS[torch.randint(256, (3, 3, 2, 2))],
        *(0.1 * torch.randn(2, 3, 3, 2, 2, dtype=torch.float64)),
    )
    t, s = torch.tensor([1, 500, 30]), torch.tensor([0, 499, 0])
    denoiser = Guesses(process, Beta(), estimate, None)
    together = vlb_term(denoiser, denoiser(x_t, t), x0, x_t, t, s, WIDTH)
    for i in range(3):
        row = slice(i, i + 1)
        alone = vlb_term(
            denoiser, Estimate(estimate[row]), x0[row], x_t[row], t[row], s[row], WIDTH
        )
        torch.testing.assert_close(together[row], alone)


@EVERY_PROCESS
def test_the_prior_term_is_what_the_last_image_still_tells(process):
    x0, t = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1000, 600, 10])
    alpha, noise = (process.table[t, i, None] for i in (0, 1))
    reached = torch.distributions.Normal(alpha * x0, noise.expand_as(x0))
    prior = torch.distributions.Normal(
        torch.zeros_like(x0), torch.hypot(alpha, noise).expand_as(x0)
    )
    expected = torch.distributions.kl_divergence(reached, prior).mean(1) / math.log(2)
    torch.testing.assert_close(prior_term(process, x0, t), expected)


def gaussian(process, variance, std=0.5):
    numbers = (
        torch.tensor([0.1, -0.2], dtype=torch.float64),
        torch.diag(torch.tensor([std**2, 0.3], dtype=torch.float64)),
    )
    return GaussianDenoiser(process, variance, *numbers)


@EVERY_PROCESS
@pytest.mark.parametrize("steps", [8, 50])
@pytest.mark.parametrize("variance", [Beta(), BetaTilde()])
def test_terms_of_samples_average_to_the_exact_bound(variance, steps, process):
    denoiser = gaussian(process, variance)
    times, count = timesteps(1000, steps, "uniform"), 20_000
    x0 = (
        denoiser.mean
        + torch.randn(count, 2, dtype=torch.float64) * denoiser.eigenvalues.sqrt() @ denoiser.axes.T
    )
    expected = analytic_propagation.analytic_vlb(
        process, variance, times, denoiser.mse(), denoiser.second_moment()
    )
    for term, one in zip(
        vlb_terms(denoiser, x0, times, clip=None, bin_width=None),
        expected["terms"].tolist(),
        strict=True,
    ):
        error = term.bits.std().item() / count**0.5
        assert term.bits.mean().item() == pytest.approx(one, abs=5 * error + 1e-12), term.t
        assert term.square_error.mean().item() == pytest.approx(
            denoiser.mse()[term.t].item(), rel=0.06
        )
    prior = prior_term(process, x0, torch.full((count,), 1000))
    assert prior.mean().item() == pytest.approx(
        expected["L_T"].item(), abs=5 * prior.std().item() / count**0.5 + 1e-12
    )


@EVERY_PROCESS
@pytest.mark.parametrize("steps", [1, 7, 1000])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
def test_with_the_optimal_variance_the_bound_of_a_gaussian_is_its_entropy(std, steps, process):
    # Then every reverse step is the true one, and all that is lost is what x_T still tells: KL(q(x_T) || prior).
    numbers = torch.zeros(1, dtype=torch.float64), torch.tensor([[std**2]], dtype=torch.float64)
    denoiser = GaussianDenoiser(process, BetaTilde(), *numbers)
    variance = Analytic(denoiser.mse())
    found = analytic_propagation.analytic_vlb(
        process,
        variance,
        timesteps(1000, steps, "uniform"),
        denoiser.mse(),
        denoiser.second_moment(),
    )
    alpha, noise, _, scale = process.table[1000].tolist()
    reached = torch.distributions.Normal(
        0.0, torch.tensor((alpha * std) ** 2 + noise**2, dtype=torch.float64).sqrt()
    )
    prior = torch.distributions.Normal(0.0, torch.tensor(scale, dtype=torch.float64))
    lost = torch.distributions.kl_divergence(reached, prior).item() / math.log(2)
    total = (found["L_T"] + found["terms"].sum()).item()
    entropy = 0.5 * math.log2(2 * math.pi * math.e * std**2)
    assert denoiser.entropy() == pytest.approx(entropy, abs=1e-12)
    assert total - entropy == pytest.approx(lost, abs=1e-9)


@EVERY_PROCESS
def test_the_optimal_variance_beats_the_learned_range_beats_its_ends(process):
    denoiser, times = gaussian(process, BetaTilde()), timesteps(1000, 20, "uniform")
    optimum = Analytic(denoiser.mse())
    variance_output = analytic_propagation.optimal_variance_output(process, optimum, times)

    def total(variance, variance_output=None):
        found = analytic_propagation.analytic_vlb(
            process, variance, times, denoiser.mse(), denoiser.second_moment(), variance_output
        )
        return (found["L_T"] + found["terms"].sum()).item()

    best, learned = total(optimum), total(LearnedRange(), variance_output)
    assert best <= learned + 1e-12 and learned <= min(total(Beta()), total(BetaTilde())) + 1e-12
    for nudge in (-0.05, 0.05):
        assert total(LearnedRange(), (variance_output + nudge).clamp(-1, 1)) >= learned


def test_bits_are_of_guesses_within_the_bound():
    process = PROCESSES["cosine"]
    denoiser = Guesses(process, BetaTilde(), torch.full((4, 1, 2, 2), 7.0), None)
    x0 = torch.full((4, 1, 2, 2), 0.8)
    (clipped_modules,) = list(vlb_terms(denoiser, x0, [300, 0], bin_width=WIDTH))
    (loose,) = list(vlb_terms(denoiser, x0, [300, 0], bin_width=WIDTH, clip=None))
    assert (
        clipped_modules.square_error.tolist() == pytest.approx([0.04] * 4)
        and clipped_modules.bits.dtype == torch.float64
    )
    assert (
        loose.square_error.tolist() == pytest.approx([6.2**2] * 4)
        and (loose.bits > clipped_modules.bits).all()
    )
