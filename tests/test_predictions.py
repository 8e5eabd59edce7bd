"""Predictions: what the network is asked, and the x_0 that is read from its answer."""

import pytest
import torch
from conftest import composed, options
from hydra.utils import instantiate

from ddpm_lab.diffusion.predictions import X0, Eps, Mean, Score, V
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, geometric, linear

PREDICTIONS = {
    name: instantiate(composed(f"prediction={name}").prediction) for name in options("prediction")
}
PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, cosine, geometric)}
EVERY_PREDICTION = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
T = torch.tensor([1, 2, 400, 999, 1000])


def drawn(process):
    x0, eps = torch.randn(2, 5, 1, 3, 3, dtype=torch.float64)
    return x0, eps, process.diffuse(x0, eps, T)


def test_every_prediction_has_its_option():
    assert {type(prediction) for prediction in PREDICTIONS.values()} == {Eps, X0, V, Mean, Score}


@EVERY_PREDICTION
@EVERY_PROCESS
def test_it_inverts(prediction, process):
    x0, eps, x_t = drawn(process)
    torch.testing.assert_close(
        prediction.x0(process, prediction.target(process, x0, eps, x_t, T), x_t, T), x0
    )


@EVERY_PREDICTION
@EVERY_PROCESS
def test_its_gain_is_by_how_much_an_error_of_the_answer_is_one_of_x0(prediction, process):
    x0, eps, x_t = drawn(process)
    output = prediction.target(process, x0, eps, x_t, T).requires_grad_()
    (slope,) = torch.autograd.grad(prediction.x0(process, output, x_t, T).sum(), output)
    gain = prediction.x0_error_scale(process, T)
    assert gain.dtype == torch.float64 and gain.shape == (5,)
    torch.testing.assert_close(slope.abs(), gain.view(5, 1, 1, 1).expand_as(slope))


@EVERY_PROCESS
def test_mean_is_that_of_x_before_given_x_now_and_the_data(process):
    x0, eps, x_t = drawn(process)
    (alpha, noise), (before, least) = (
        process.table[t][:, :2].view(5, 2, 1, 1, 1).unbind(1) for t in (T, T - 1)
    )
    # Bayes' rule on x_{t-1} = before x0 + least z and x_t = gain x_{t-1} + sqrt(variance) z'.
    gain = alpha / before
    kalman = least**2 * gain / noise**2
    expected = before * x0 + kalman * (x_t - gain * before * x0)
    torch.testing.assert_close(Mean().target(process, x0, eps, x_t, T), expected)
    torch.testing.assert_close(expected[0], x0[0])  # at t = 1 the mean is the data


@EVERY_PROCESS
def test_the_others_are_what_they_are_called(process):
    x0, eps, x_t = drawn(process)
    noise = process.table[T, 1].view(5, 1, 1, 1)
    assert torch.equal(Eps().target(process, x0, eps, x_t, T), eps)
    assert torch.equal(X0().target(process, x0, eps, x_t, T), x0)
    torch.testing.assert_close(Score().target(process, x0, eps, x_t, T), -eps / noise)


@EVERY_PROCESS
def test_v_is_the_rotated_pair(process):
    x0, eps, x_t = drawn(process)
    alpha, noise = process.table[T, :2].view(5, 2, 1, 1, 1).unbind(1)
    v = V().target(process, x0, eps, x_t, T)
    expected = alpha * eps - noise * x0
    torch.testing.assert_close(
        v, expected if process is not PROCESSES["geometric"] else expected / (1 + noise**2) ** 0.5
    )
    # (x_t, scale v) is (x_0, eps) turned: lengths are kept.
    torch.testing.assert_close(
        x_t**2 + (alpha * eps - noise * x0) ** 2, (alpha**2 + noise**2) * (x0**2 + eps**2)
    )
    torch.testing.assert_close(v[-1], -x0[-1], rtol=0, atol=0.05)  # at T it asks for the data
