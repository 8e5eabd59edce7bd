"""The forward process against a brute-force chain of single steps."""

import numpy as np
import pytest
import torch

from ddpm_lab.diffusion.predictions import X0, Eps, V
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, linear, quadratic
from ddpm_lab.diffusion.variances import Beta, BetaTilde

PAIRS = [(1, 0), (2, 1), (2, 0), (7, 3), (500, 499), (500, 100), (1000, 999), (1000, 1), (1000, 0)]
PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, quadratic, cosine)}


def at(*numbers):
    return torch.tensor(numbers)


def chain(process, t, s):
    """Gain and variance of q(x_t | x_s), by composing single steps in numpy."""
    alpha_bar = process.table[:, 0].numpy() ** 2
    gain, variance = 1.0, 0.0
    for u in range(s + 1, t + 1):
        alpha = alpha_bar[u] / alpha_bar[u - 1]
        gain, variance = gain * np.sqrt(alpha), variance * alpha + 1 - alpha
    return gain, variance


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_is_bayes_rule_on_the_chain(process, t, s):
    (gain, beta), (a, v) = chain(process, t, s), chain(process, s, 0)
    # x_s = a x0 + sqrt(v) z and x_t = gain x_s + sqrt(beta) z': condition the one on the other.
    kalman = v * gain / (gain**2 * v + beta)
    x0, x_t = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[-1.1]], dtype=torch.float64)
    assert process.posterior_mean(x0, x_t, at(t), at(s)).item() == pytest.approx(
        a * 0.3 + kalman * (-1.1 - gain * a * 0.3), rel=1e-6
    )
    assert process.beta(at(t), at(s)).item() == pytest.approx(beta, rel=1e-9)
    assert process.beta_tilde(at(t), at(s)).item() == pytest.approx(v * (1 - kalman * gain), rel=1e-6, abs=1e-15)


def test_diffuse_has_the_signal_of_the_root_of_alpha_bar():
    process, x0 = PROCESSES["linear"], torch.full((200_000, 1), 0.5)
    x_t = process.diffuse(x0, torch.randn_like(x0), torch.full((len(x0),), 300))
    alpha_bar = process.table[300, 0].item() ** 2
    assert x_t.mean().item() == pytest.approx(0.5 * alpha_bar**0.5, abs=0.01)
    assert x_t.var().item() == pytest.approx(1 - alpha_bar, abs=0.01)
    assert abs(x_t.mean().item() - 0.5 * alpha_bar) > 0.05, "the slip alpha_bar x_0 would be seen"


def test_x0_and_eps_invert_diffuse():
    process = PROCESSES["cosine"]
    x0, eps = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64)
    t = at(1, 10, 500, 1000)
    x_t = process.diffuse(x0, eps, t)
    torch.testing.assert_close(process.x0(x_t, eps, t), x0)
    torch.testing.assert_close(process.eps(x_t, x0, t), eps)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("variance", [Beta(), BetaTilde()])
def test_every_pair_has_a_finite_log_variance(steps, variance):
    process = ForwardProcess(cosine(steps))
    pairs = torch.tensor([(t, s) for t in range(1, steps + 1) for s in range(t)])
    assert torch.isfinite(variance.log_var(process, pairs[:, 0], pairs[:, 1])).all()


def test_the_last_log_variance_is_that_of_the_next_step():
    process = PROCESSES["linear"]
    assert process.log_beta_tilde(at(1), at(0)) == process.beta_tilde(at(2), at(1)).log()
    assert process.log_beta_tilde(at(50), at(0)) == process.beta_tilde(at(100), at(50)).log()
    assert Beta().log_var(process, at(1), at(0)) == process.log_beta_tilde(at(1), at(0))


def test_beta_and_beta_tilde_are_the_upper_and_the_lower_bound():
    process, t = PROCESSES["linear"], torch.arange(2, 1001)
    upper, lower = (v.log_var(process, t, t - 1) for v in (Beta(), BetaTilde()))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[1:]
    torch.testing.assert_close(upper.exp(), betas, rtol=1e-9, atol=0)
    torch.testing.assert_close(lower.exp(), betas * ((1 - (1 - betas).log().cumsum(0).exp() * (1 - 1e-4) / (1 - betas))
                               / (1 - (1 - betas).log().cumsum(0).exp() * (1 - 1e-4))), rtol=1e-6, atol=0)  # fmt: skip
    assert (lower < upper).all()


@pytest.mark.parametrize("prediction", [Eps(), X0(), V()])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_prediction_inverts(prediction, process):
    x0, eps = torch.randn(2, 5, 1, 3, 3, dtype=torch.float64)
    t = at(1, 2, 400, 999, 1000)
    x_t = process.diffuse(x0, eps, t)
    torch.testing.assert_close(prediction.x0(process, prediction.target(process, x0, eps, t), x_t, t), x0)


def test_v_is_the_rotated_pair():
    process, x0, eps = PROCESSES["cosine"], *torch.randn(2, 1, 1, dtype=torch.float64)
    signal, noise = process.scales(at(300))
    assert V().target(process, x0, eps, at(300)) == pytest.approx((signal * eps - noise * x0).item())
