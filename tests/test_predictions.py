"""Predictions: targets of the network, and the x_0 that its output implies."""

import pytest
import torch
from conftest import composed, options
from hydra.utils import instantiate

from ddpm_lab.diffusion.predictions import X0, Eps, Mean, Score, V, Velocity
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, geometric, linear

PREDICTIONS = {
    name: instantiate(composed(f"prediction={name}").prediction) for name in options("prediction")
}
PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, cosine, geometric)}
EVERY_PREDICTION = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
T = torch.tensor([1, 2, 400, 999, 1000])


def sample(process):
    x0, eps = torch.randn(2, 5, 1, 3, 3, dtype=torch.float64)
    return x0, eps, process.diffuse(x0, eps, T)


def to_x0(prediction, process, output, x_t):
    c_skip, c_out = (number.view(5, 1, 1, 1) for number in prediction.preconditioning(process, T))
    return c_skip * x_t + c_out * output


def test_every_prediction_has_a_config():
    assert {type(prediction) for prediction in PREDICTIONS.values()} == {
        Eps,
        X0,
        V,
        Velocity,
        Mean,
        Score,
    }


@EVERY_PREDICTION
@EVERY_PROCESS
def test_x0_inverts_target(prediction, process):
    x0, eps, x_t = sample(process)
    output = prediction.target(process, x0, eps, x_t, T)
    torch.testing.assert_close(to_x0(prediction, process, output, x_t), x0)


@EVERY_PREDICTION
@EVERY_PROCESS
def test_x0_error_scale_is_the_slope_of_x0(prediction, process):
    x0, eps, x_t = sample(process)
    output = prediction.target(process, x0, eps, x_t, T).requires_grad_()
    (slope,) = torch.autograd.grad(to_x0(prediction, process, output, x_t).sum(), output)
    scale = prediction.x0_error_scale(process, T)
    assert scale.dtype == torch.float64 and scale.shape == (5,)
    torch.testing.assert_close(slope.abs(), scale.view(5, 1, 1, 1).expand_as(slope))


@EVERY_PROCESS
def test_mean_matches_bayes_rule(process):
    x0, eps, x_t = sample(process)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        process.table[t][:, :2].view(5, 2, 1, 1, 1).unbind(1) for t in (T, T - 1)
    )
    # Bayes' rule on x_s = alpha_s x0 + sigma_s z and x_t = gain x_s + sqrt(variance) z', s = t - 1.
    gain = alpha_t / alpha_s
    kalman = sigma_s**2 * gain / sigma_t**2
    expected = alpha_s * x0 + kalman * (x_t - gain * alpha_s * x0)
    torch.testing.assert_close(Mean().target(process, x0, eps, x_t, T), expected)
    torch.testing.assert_close(expected[0], x0[0])  # at t = 1 the mean is the data


@EVERY_PROCESS
def test_eps_x0_and_score_targets(process):
    x0, eps, x_t = sample(process)
    sigma = process.table[T, 1].view(5, 1, 1, 1)
    assert torch.equal(Eps().target(process, x0, eps, x_t, T), eps)
    assert torch.equal(X0().target(process, x0, eps, x_t, T), x0)
    torch.testing.assert_close(Score().target(process, x0, eps, x_t, T), -eps / sigma)


@EVERY_PROCESS
def test_v_is_a_rotation(process):
    x0, eps, x_t = sample(process)
    alpha, sigma = process.table[T, :2].view(5, 2, 1, 1, 1).unbind(1)
    v, scaled_v = V().target(process, x0, eps, x_t, T), alpha * eps - sigma * x0
    scale = (1 + sigma**2) ** 0.5 if process is PROCESSES["geometric"] else 1
    torch.testing.assert_close(v, scaled_v / scale)
    # (x_t, scale v) is a rotation of scale (x_0, eps), which preserves lengths.
    squares = (alpha**2 + sigma**2) * (x0**2 + eps**2)
    torch.testing.assert_close(x_t**2 + scaled_v**2, squares)
    torch.testing.assert_close(v[-1], -x0[-1], rtol=0, atol=0.05)
