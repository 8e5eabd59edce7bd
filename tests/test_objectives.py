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
PROCESSES = {
    "linear": ForwardProcess(linear(100)),
    "cosine": ForwardProcess(cosine(100)),
    "geometric": ForwardProcess(geometric(100)),
}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
T = torch.tensor([1, 2, 40, 99, 100])


class Says(nn.Module):
    """A network whose answer is its parameter."""

    def __init__(self, output):
        super().__init__()
        self.run_network = nn.Parameter(output)

    def forward(self, x, t, cond):
        return self.run_network


def drawn(process, dtype=torch.float64):
    x0 = (torch.randint(256, (len(T), 2, 3, 3)) / 127.5 - 1).to(dtype)
    eps = torch.randn_like(x0)
    return NoisedBatch(x0, eps, process.diffuse(x0, eps, T), T, Condition(), WIDTH)


def wrong(process, draw, prediction, by=0.01):
    """A denoiser that is off by noise of `by` in x_0, and that x_0."""
    x0 = draw.x0 + by * torch.randn_like(draw.x0)
    output = prediction.target(process, x0, process.eps(draw.x_t, x0, T), draw.x_t, T)
    return Denoiser(Says(output), process, prediction, BetaTilde()), x0


@EVERY_PROCESS
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weighted_losses_are_of_x0_whatever_the_network_predicts(prediction, process):
    draw = drawn(process)
    denoiser, x0 = wrong(process, draw, prediction)
    error = (x0 - draw.x0).square().flatten(1).mean(1)
    snr = (process.table[T, 0] / process.table[T, 1]) ** 2
    torch.testing.assert_close(Snr()(denoiser, draw), snr * error)
    torch.testing.assert_close(MinSnr(gamma=3.0)(denoiser, draw), snr.clamp(max=3.0) * error)
    means = process.posterior_mean(x0, draw.x_t, T, T - 1) - process.posterior_mean(
        draw.x0, draw.x_t, T, T - 1
    )
    torch.testing.assert_close(MeanMatching()(denoiser, draw), means.square().flatten(1).mean(1))


def test_min_snr_is_5_as_in_the_paper_and_bounds_the_weight():
    process, draw = PROCESSES["cosine"], drawn(PROCESSES["cosine"])
    denoiser, x0 = wrong(process, draw, Eps())
    error = (x0 - draw.x0).square().flatten(1).mean(1)
    assert (MinSnr()(denoiser, draw) / error).tolist() == pytest.approx(
        process.log_snr(T).exp().clamp(max=5).tolist()
    )


@EVERY_PROCESS
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_is_the_error_in_the_networks_own_terms(prediction, process):
    draw = drawn(process)
    denoiser, _ = wrong(process, draw, prediction)
    target = prediction.target(process, draw.x0, draw.eps, draw.x_t, T)
    expected = (denoiser.network.run_network - target).square().flatten(1).mean(1)
    torch.testing.assert_close(Simple()(denoiser, draw), expected)


@EVERY_PROCESS
def test_some_objectives_are_one_another(process):
    draw = drawn(process)
    torch.testing.assert_close(
        *(
            objective(wrong_eps, draw)
            for wrong_eps in [wrong(process, draw, Eps())[0]]
            for objective in (Simple(), Snr())
        )
    )
    mean = wrong(process, draw, Mean())[0]
    torch.testing.assert_close(Simple()(mean, draw), MeanMatching()(mean, draw))


def learned(process, draw, objective, prediction=Eps()):  # noqa: B008
    """Losses, and the gradients of their sum into the prediction and into the spread."""
    own = prediction.target(process, draw.x0, draw.eps, draw.x_t, T) + 0.1 * torch.randn_like(
        draw.x0
    )
    variance_output = torch.rand_like(own) - 0.5
    denoiser = Denoiser(
        Says(torch.cat([own, variance_output], 1)), process, prediction, LearnedRange()
    )
    losses = objective(denoiser, draw)
    losses.sum().backward()
    return denoiser, losses, denoiser.network.run_network.grad.split(2, dim=1)


@EVERY_PROCESS
def test_vlb_is_all_steps_times_the_term_of_the_bound(process):
    draw = drawn(process)
    denoiser, losses, (into_own, into_spread) = learned(process, draw, Vlb())
    own, variance_output = denoiser.network.run_network.split(2, dim=1)
    estimate = Estimate(process.x0(draw.x_t, own, T), variance_output)
    expected = 100 * vlb_term(denoiser, estimate, draw.x0, draw.x_t, T, T - 1, WIDTH)
    torch.testing.assert_close(losses, expected)
    assert (into_own.abs().flatten(1).sum(1) > 0).all() and (
        into_spread.abs().flatten(1).sum(1) > 0
    ).all()


def test_the_mean_of_vlb_over_all_times_is_the_bound():
    process = ForwardProcess(cosine(100))
    x0 = (torch.randint(256, (1, 1, 2, 2)) / 127.5 - 1).double().expand(100, 1, 2, 2)
    t, eps = torch.arange(1, 101), torch.randn(100, 1, 2, 2, dtype=torch.float64)
    draw = NoisedBatch(x0, eps, process.diffuse(x0, eps, t), t, Condition(), WIDTH)
    denoiser = Denoiser(Says(0.9 * eps), process, Eps(), BetaTilde())
    estimate = denoiser(draw.x_t, t)
    chain = vlb_term(denoiser, estimate, x0, draw.x_t, t, t - 1, WIDTH).sum()
    torch.testing.assert_close(Vlb()(denoiser, draw).mean(), chain)


@EVERY_PROCESS
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_hybrid_teaches_the_mean_by_simple_and_the_spread_by_the_bound(prediction, process):
    draw, found = drawn(process), {}
    for name, objective in {
        "simple": Simple(),
        "vlb": Vlb(),
        "hybrid": Hybrid(weight=0.01),
    }.items():
        torch.manual_seed(1)
        found[name] = learned(process, draw, objective, prediction)
    _, simple, (into_own, nothing) = found["simple"]
    _, vlb, (_, into_spread) = found["vlb"]
    _, hybrid, gradients = found["hybrid"]
    torch.testing.assert_close(hybrid, simple + 0.01 * vlb)
    torch.testing.assert_close(gradients[0], into_own, rtol=0, atol=0)
    torch.testing.assert_close(gradients[1], 0.01 * into_spread)
    assert nothing.abs().max() == 0 and into_spread.abs().max() > 0


def test_hybrid_weighs_the_whole_bound_by_a_thousandth():
    assert (
        Hybrid().weight == 0.001
    )  # Nichol & Dhariwal, 2021, section 3.1, of L_vlb and not of a term


@pytest.mark.parametrize("objective", [Simple(), Snr(), MinSnr(), MeanMatching(), Vlb(), Hybrid()])
def test_losses_and_gradients_are_finite_in_float32_at_every_time(objective):
    process, t = ForwardProcess(cosine()), torch.arange(1, 1001)
    x0 = (torch.randint(256, (1000, 1, 2, 2)) / 127.5 - 1).float()
    eps = torch.randn_like(x0)
    draw = NoisedBatch(x0, eps, process.diffuse(x0, eps, t), t, Condition(), WIDTH)
    denoiser = Denoiser(Says(torch.zeros(1000, 2, 2, 2)), process, Eps(), LearnedRange())
    losses = objective(denoiser, draw)
    losses.sum().backward()
    assert (
        losses.shape == (1000,)
        and torch.isfinite(losses).all()
        and torch.isfinite(denoiser.network.run_network.grad).all()
    )


@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_numbers_that_cannot_be_are_refused(weight):
    with pytest.raises(ValueError, match="weight must"):
        Hybrid(weight)
    with pytest.raises(ValueError, match="gamma must"):
        MinSnr(weight)
