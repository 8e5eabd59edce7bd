"""Objectives: their values by formula, and where their gradients go."""

import math

import pytest
import torch
from torch import nn

from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser, Estimate
from ddpm_lab.diffusion.likelihood import vlb_term
from ddpm_lab.diffusion.objectives import (
    Hybrid,
    MeanMatching,
    MinSnr,
    NoisedBatch,
    Simple,
    Snr,
    Vlb,
)
from ddpm_lab.diffusion.predictions import X0, Eps, Mean, Score, V
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine, geometric, linear
from ddpm_lab.diffusion.variances import BetaTilde, LearnedRange

WIDTH = 2 / 255
PREDICTIONS = [Eps(), X0(), V(), Mean(), Score()]
PROCESSES = {f.__name__: ForwardProcess(f(100)) for f in (linear, cosine, geometric)}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
T = torch.tensor([1, 2, 40, 99, 100])


class ConstantNetwork(nn.Module):
    """A network whose output is its parameter."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x, t, cond):
        return self.output


def noised_batch(process, dtype=torch.float64):
    x0 = (torch.randint(256, (len(T), 2, 3, 3)) / 127.5 - 1).to(dtype)
    eps = torch.randn_like(x0)
    return NoisedBatch(x0, eps, process.diffuse(x0, eps, T), T, Condition(), WIDTH)


def inexact(process, batch, prediction, by=0.01):
    """Return a denoiser with errors of std `by` in x_0, and its x_0 estimate."""
    x0 = batch.x0 + by * torch.randn_like(batch.x0)
    output = prediction.target(process, x0, process.eps(batch.x_t, x0, T), batch.x_t, T)
    return Denoiser(ConstantNetwork(output), process, prediction, BetaTilde()), x0


@EVERY_PROCESS
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weighted_losses_are_x0_errors_for_every_prediction(prediction, process):
    batch = noised_batch(process)
    denoiser, x0 = inexact(process, batch, prediction)
    error = (x0 - batch.x0).square().flatten(1).mean(1)
    snr = (process.table[T, 0] / process.table[T, 1]) ** 2
    torch.testing.assert_close(Snr()(denoiser, batch), snr * error)
    torch.testing.assert_close(MinSnr(gamma=3.0)(denoiser, batch), snr.clamp(max=3.0) * error)
    means = process.posterior_mean(x0 - batch.x0, torch.zeros_like(x0), T, T - 1)
    torch.testing.assert_close(MeanMatching()(denoiser, batch), means.square().flatten(1).mean(1))


def test_min_snr_gamma_is_5_as_in_the_paper():
    process, batch = PROCESSES["cosine"], noised_batch(PROCESSES["cosine"])
    denoiser, x0 = inexact(process, batch, Eps())
    error = (x0 - batch.x0).square().flatten(1).mean(1)
    torch.testing.assert_close(
        MinSnr()(denoiser, batch), process.log_snr(T).exp().clamp(max=5) * error
    )


@EVERY_PROCESS
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_is_the_error_of_the_prediction(prediction, process):
    batch = noised_batch(process)
    denoiser, _ = inexact(process, batch, prediction)
    target = prediction.target(process, batch.x0, batch.eps, batch.x_t, T)
    expected = (denoiser.network.output - target).square().flatten(1).mean(1)
    torch.testing.assert_close(Simple()(denoiser, batch), expected)


@EVERY_PROCESS
def test_equivalent_objectives(process):
    batch = noised_batch(process)
    eps = inexact(process, batch, Eps())[0]
    torch.testing.assert_close(Simple()(eps, batch), Snr()(eps, batch))
    mean = inexact(process, batch, Mean())[0]
    torch.testing.assert_close(Simple()(mean, batch), MeanMatching()(mean, batch))


def backward(process, batch, objective, prediction=Eps()):
    """Return the denoiser, its losses and their gradients for prediction and variance."""
    target = prediction.target(process, batch.x0, batch.eps, batch.x_t, T)
    output = target + 0.1 * torch.randn_like(batch.x0)
    network = ConstantNetwork(torch.cat([output, torch.rand_like(output) - 0.5], 1))
    denoiser = Denoiser(network, process, prediction, LearnedRange())
    losses = objective(denoiser, batch)
    losses.sum().backward()
    return denoiser, losses, denoiser.network.output.grad.split(2, dim=1)


@EVERY_PROCESS
def test_vlb_is_steps_times_the_term(process):
    batch = noised_batch(process)
    denoiser, losses, gradients = backward(process, batch, Vlb())
    eps, variance_output = denoiser.network.output.split(2, dim=1)
    estimate = Estimate(process.x0(batch.x_t, eps, T), variance_output)
    expected = 100 * vlb_term(denoiser, estimate, batch.x0, batch.x_t, T, T - 1, WIDTH)
    torch.testing.assert_close(losses, expected)
    assert all((gradient.abs().flatten(1).sum(1) > 0).all() for gradient in gradients)


def test_mean_of_vlb_over_all_times_is_the_bound():
    process = ForwardProcess(cosine(100))
    x0 = (torch.randint(256, (1, 1, 2, 2)) / 127.5 - 1).double().expand(100, 1, 2, 2)
    t, eps = torch.arange(1, 101), torch.randn(100, 1, 2, 2, dtype=torch.float64)
    batch = NoisedBatch(x0, eps, process.diffuse(x0, eps, t), t, Condition(), WIDTH)
    denoiser = Denoiser(ConstantNetwork(0.9 * eps), process, Eps(), BetaTilde())
    estimate = denoiser(batch.x_t, t)
    chain = vlb_term(denoiser, estimate, x0, batch.x_t, t, t - 1, WIDTH).sum()
    torch.testing.assert_close(Vlb()(denoiser, batch).mean(), chain)


@EVERY_PROCESS
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_hybrid_gradients_of_mean_and_variance(prediction, process):
    batch = noised_batch(process)

    def run(objective):
        torch.manual_seed(1)
        _, losses, gradients = backward(process, batch, objective, prediction)
        return losses, *gradients

    simple, simple_mean, simple_variance = run(Simple())
    vlb, _, vlb_variance = run(Vlb())
    hybrid, hybrid_mean, hybrid_variance = run(Hybrid(weight=0.01))
    torch.testing.assert_close(hybrid, simple + 0.01 * vlb)
    torch.testing.assert_close(hybrid_mean, simple_mean, rtol=0, atol=0)
    torch.testing.assert_close(hybrid_variance, 0.01 * vlb_variance)
    assert simple_variance.abs().max() == 0 and vlb_variance.abs().max() > 0


def test_hybrid_weight_is_a_thousandth():
    assert Hybrid().weight == 0.001  # Nichol & Dhariwal, 2021, section 3.1: of L_vlb, not of a term


@pytest.mark.parametrize("objective", [Simple(), Snr(), MinSnr(), MeanMatching(), Vlb(), Hybrid()])
def test_losses_and_gradients_are_finite_in_float32(objective):
    process, t = ForwardProcess(cosine()), torch.arange(1, 1001)
    x0 = (torch.randint(256, (1000, 1, 2, 2)) / 127.5 - 1).float()
    eps = torch.randn_like(x0)
    batch = NoisedBatch(x0, eps, process.diffuse(x0, eps, t), t, Condition(), WIDTH)
    denoiser = Denoiser(ConstantNetwork(torch.zeros(1000, 2, 2, 2)), process, Eps(), LearnedRange())
    losses = objective(denoiser, batch)
    losses.sum().backward()
    assert losses.shape == (1000,) and torch.isfinite(losses).all()
    assert torch.isfinite(denoiser.network.output.grad).all()


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_invalid_weights_raise(weight):
    with pytest.raises(ValueError, match="weight must"):
        Hybrid(weight)
    with pytest.raises(ValueError, match="gamma must"):
        MinSnr(weight)
