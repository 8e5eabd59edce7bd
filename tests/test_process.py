"""The forward process against a brute-force chain of single steps."""

import functools

import numpy as np
import pytest
import torch

from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, geometric, linear, quadratic

PAIRS = [(1, 0), (2, 1), (2, 0), (7, 3), (500, 499), (500, 100), (1000, 999), (1000, 1), (1000, 0)]
PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, quadratic, cosine, geometric)}
EVERY_PROCESS = pytest.mark.parametrize("name", PROCESSES)


def at(*numbers):
    return torch.tensor(numbers)


@functools.cache
def single_steps(name):
    """Return gain and variance of each q(x_t | x_{t-1}), t = 1..1000, by the papers' formulas."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    if name == "geometric":
        sigma = np.concatenate([[0], 0.01 * 5000 ** (np.arange(1000) / 999)])
        return np.ones(1000), np.diff(sigma**2)
    betas = {
        "linear": np.linspace(1e-4, 0.02, 1000),
        "quadratic": np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2,
        "cosine": np.minimum(1 - f[1:] / f[:-1], 0.999),
    }[name]
    return np.sqrt(1 - betas), betas


def chain(name, t, s):
    """Return gain and variance of q(x_t | x_s) by composing single steps."""
    gain, variance = 1.0, 0.0
    steps = zip(*(numbers[s:t] for numbers in single_steps(name)), strict=True)
    for step_gain, step_variance in steps:
        gain, variance = gain * step_gain, variance * step_gain**2 + step_variance
    return gain, variance


@EVERY_PROCESS
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_scalar_time_equals_time_per_sample(name, t, s):
    process, x0, x_t = PROCESSES[name], *torch.randn(2, 3, 1, 2, 2)

    def outputs(t, s):
        posterior = process.posterior(x0, x_t, t, s)
        updates = [process.ddim_update(x_t, x0, t, s, eta) for eta in (0.0, 0.5, 1)]
        return (*posterior, *updates, process.diffuse(x0, x_t, t))

    scalar = outputs(torch.tensor(t), torch.tensor(s))
    per_sample = outputs(torch.full((3,), t), torch.full((3,), s))
    for result, expected in zip(scalar, per_sample, strict=True):
        assert torch.equal(result.expand_as(expected), expected)


def test_numbers_of_scalar_times_are_computed_once(monkeypatch):
    process, t, s = ForwardProcess(cosine()), torch.tensor(500), torch.tensor(400)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        expected = process.posterior(x, x, t, s).mean
    monkeypatch.setattr(ForwardProcess, "_rows", None)
    mean = process.posterior(x, x, t.clone(), s.clone()).mean
    assert torch.equal(mean, expected)
    assert mean.sum().backward() is None and x.grad.isfinite().all()  # not inference tensors
    with pytest.raises(TypeError):  # rows of float times are interpolated
        process.log_snr(t.double())


def test_cache_of_numbers_is_bounded(monkeypatch):
    monkeypatch.setattr("ddpm_lab.diffusion.process.MAX_NUMBERS", 10)
    process = ForwardProcess(cosine())
    numbers = [process.log_snr(torch.tensor(t)).item() for t in range(1, 100)]
    assert len(process.numbers) <= 10
    assert numbers == process.log_snr(torch.arange(1, 100)).tolist()


@EVERY_PROCESS
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_matches_bayes_rule_on_the_chain(name, t, s):
    process = PROCESSES[name]
    (gain, beta), (a, v) = chain(name, t, s), chain(name, s, 0)
    # Condition x_s = a x0 + sqrt(v) z on x_t = gain x_s + sqrt(beta) z'.
    total = gain**2 * v + beta
    kalman, beta_tilde = v * gain / total, v * beta / total
    assert process.beta(at(t), at(s)).item() == pytest.approx(beta, rel=1e-9)
    assert process.beta_tilde(at(t), at(s)).item() == pytest.approx(beta_tilde, rel=1e-9)
    assert process.posterior_coef_xt(at(t), at(s)).item() == pytest.approx(kalman, rel=1e-9)
    coef_x0 = process.posterior_coef_x0(at(t), at(s)).item()
    assert coef_x0 == pytest.approx(a * beta / total, rel=1e-9)
    x0, x_t = torch.tensor([[[0.3]], [[-1.1]]], dtype=torch.float64)
    mean = a * 0.3 + kalman * (-1.1 - gain * a * 0.3)
    assert process.posterior_mean(x0, x_t, at(t), at(s)).item() == pytest.approx(mean, rel=1e-7)
    posterior = process.posterior(x0, x_t, at(t), at(s))
    assert posterior.mean.item() == pytest.approx(mean, rel=1e-7)
    assert torch.isfinite(posterior.log_var).all()
    if s > 0:
        assert posterior.log_var.item() == pytest.approx(np.log(beta_tilde), abs=1e-9)


@EVERY_PROCESS
def test_posterior_mean_in_float32(name):
    process, x = PROCESSES[name], torch.randn(2, len(PAIRS), 1, 2, 2)
    t, s = torch.tensor(PAIRS).T
    exact, mean = process.posterior_mean(*x.double(), t, s), process.posterior_mean(*x, t, s)
    torch.testing.assert_close(mean.double(), exact, rtol=1e-5, atol=1e-5)


@EVERY_PROCESS
@pytest.mark.parametrize("t", [1, 500, 1000])
def test_diffuse_matches_chain_of_single_steps(name, t):
    gain, variance = chain(name, t, 0)
    process, x0 = PROCESSES[name], torch.tensor([[0.5]], dtype=torch.float64)
    x_t = process.diffuse(x0, torch.zeros(1, 1), at(t))
    assert x_t.item() == pytest.approx(0.5 * gain, rel=1e-9)
    x_t = process.diffuse(0 * x0, torch.ones(1, 1), at(t))
    assert x_t.item() == pytest.approx(variance**0.5, rel=1e-9)
    assert process.log_snr(at(t)).item() == pytest.approx(np.log(gain**2 / variance), rel=1e-9)
    assert process.scale(at(t)).item() == pytest.approx((gain**2 + variance) ** 0.5, rel=1e-9)


def test_diffuse_scales_x0_by_sqrt_alpha_bar():
    process, x0 = PROCESSES["linear"], torch.full((200_000, 1), 0.5)
    x_t = process.diffuse(x0, torch.randn_like(x0), torch.full((len(x0),), 300))
    alpha_bar = process.table[300, 0].item() ** 2
    assert x_t.mean().item() == pytest.approx(0.5 * alpha_bar**0.5, abs=0.01)
    assert x_t.var().item() == pytest.approx(1 - alpha_bar, abs=0.01)
    assert abs(x_t.mean().item() - 0.5 * alpha_bar) > 0.05, "must differ from alpha_bar x_0"


@EVERY_PROCESS
def test_x0_eps_and_score_invert_diffuse(name):
    process = PROCESSES[name]
    x0, eps = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64)
    t = at(1, 10, 500, 1000)
    x_t = process.diffuse(x0, eps, t)
    torch.testing.assert_close(process.x0(x_t, eps, t), x0)
    torch.testing.assert_close(process.eps(x_t, x0, t), eps)
    sigma = process.alpha_sigma(t)[1].view(4, 1, 1, 1)
    torch.testing.assert_close(process.score(x_t, x0, t), -eps / sigma)


@EVERY_PROCESS
def test_score_is_gradient_of_log_density(name):
    process, x0, t = PROCESSES[name], torch.tensor([[0.4, -2.0]], dtype=torch.float64), at(123)
    gain, variance = chain(name, 123, 0)
    x_t = torch.tensor([[0.1, 1.5]], dtype=torch.float64, requires_grad=True)
    torch.distributions.Normal(gain * x0, variance**0.5).log_prob(x_t).sum().backward()
    torch.testing.assert_close(process.score(x_t.detach(), x0, t), x_t.grad)


@pytest.mark.parametrize("step", [1, 500, 1000])
def test_prior_variance(step):
    z = torch.randn(3, 1, 2, 2)
    t = torch.full((3,), step)
    torch.testing.assert_close(PROCESSES["cosine"].prior(z, t), z)
    width = (1 + (0.01 * 5000 ** ((step - 1) / 999)) ** 2) ** 0.5
    torch.testing.assert_close(PROCESSES["geometric"].prior(z, t), width * z)


@EVERY_PROCESS
def test_log_beta_tilde_at_the_data_equals_the_next_step(name):
    process = PROCESSES[name]
    for t in (1, 50, 400):
        (gain, beta), (_, v) = chain(name, 2 * t, t), chain(name, t, 0)
        expected = np.log(v * beta / (gain**2 * v + beta))
        assert process.log_beta_tilde(at(t), at(0)).item() == pytest.approx(expected, abs=1e-9)
    # T = 1000 has no next step of 600 or 1000.
    for t, expected in (
        (600, process.beta_tilde(at(1000), at(600)).log().item()),
        (1000, np.log(chain(name, 1000, 0)[1])),
    ):
        assert process.log_beta_tilde(at(t), at(0)).item() == pytest.approx(expected, abs=1e-9)


def test_batch_rows_are_independent():
    process, x = PROCESSES["linear"], torch.randn(2, len(PAIRS), 1, 2, 2, dtype=torch.float64)
    t, s = torch.tensor(PAIRS).T
    batch = process.posterior(*x, t, s)
    for i in range(len(PAIRS)):
        row = slice(i, i + 1)
        single = process.posterior(x[0, row], x[1, row], t[row], s[row])
        assert torch.equal(batch.mean[row], single.mean)
        assert torch.equal(batch.log_var[row], single.log_var)


def test_table_is_float64_and_not_in_checkpoints():
    process = ForwardProcess(linear())
    assert process.table.dtype == torch.float64 and process.table.shape == (1001, 4)
    assert process.state_dict() == {}
