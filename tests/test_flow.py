"""Rectified flow: closed forms, and equality with diffusion after a change of variables."""

from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
from torch import nn

from ddpm_lab.diffusion.analytic_denoisers import (
    GaussianDenoiser,
    Mixture,
    MixtureClassifier,
    MixtureDenoiser,
)
from ddpm_lab.diffusion.classifier_guidance import ClassifierGuidance
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.ode_solvers import DPMSolver, Heun
from ddpm_lab.diffusion.predictions import Eps, Score, V, Velocity
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM, DDPM
from ddpm_lab.diffusion.schedules import Schedule, cosine, flow
from ddpm_lab.diffusion.timestep_samplers import LogitNormal
from ddpm_lab.diffusion.variances import BetaTilde
from ddpm_lab.utils.errors import UserError

PROCESS = ForwardProcess(flow())
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.2, 0.1], [0.1, 0.3]], dtype=torch.float64)


def gaussian(process):
    return GaussianDenoiser(process, BetaTilde(), MEAN, COVARIANCE)


def test_ddim_is_eulers_method_on_the_velocity():
    denoiser, x = gaussian(PROCESS), torch.randn(5, 2, dtype=torch.float64)
    sampler = DDIM(steps=7, clip=None)
    result, euler = sampler(denoiser, x), x
    for t, s in pairwise(sampler.timesteps(PROCESS)):
        u_t, u_s = t / 1000, s / 1000
        time = torch.full((5,), t)
        x0 = denoiser(euler, time).x0
        eps = (euler - (1 - u_t) * x0) / u_t
        velocity = Velocity().target(PROCESS, x0, eps, euler, time)
        euler = euler + (u_s - u_t) * velocity
    torch.testing.assert_close(result, euler, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [1, 300, 999, 1000])
def test_velocity_of_gaussian_data_is_the_regression_of_eps_minus_x0(t):
    u, x = t / 1000, torch.randn(4, 2, dtype=torch.float64)
    variance = (1 - u) ** 2 * COVARIANCE + u**2 * torch.eye(2)
    covariance = u * torch.eye(2) - (1 - u) * COVARIANCE  # of eps - x_0 and x_t
    exact = (x - (1 - u) * MEAN) @ torch.linalg.inv(variance) @ covariance - MEAN
    x0 = gaussian(PROCESS)(x, torch.full((4,), t)).x0
    torch.testing.assert_close((x - x0) / u, exact)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", [DDIM, DDPM, DPMSolver, Heun])
def test_flow_is_diffusion_after_a_change_of_variables(sampler, shift):
    schedule = flow(shift=shift)
    scale = torch.hypot(*schedule[:2])
    diffusion = ForwardProcess(Schedule(schedule.alpha / scale, schedule.sigma / scale))
    x, noise = torch.randn(2, 5, 2, dtype=torch.float64)
    one = sampler(steps=10, clip=None)
    a, b = (
        one(gaussian(process), x, noise=lambda like, process=process: noise)
        for process in (ForwardProcess(schedule), diffusion)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_classifier_does_not_shift_noise_alone():
    means = torch.tensor([[0.5, 0.0], [-0.5, 0.0]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    mixture = Mixture(means, weights, 0.1, torch.tensor([0, 1]))
    denoiser = MixtureDenoiser(PROCESS, BetaTilde(), mixture._replace(labels=None))
    guided = ClassifierGuidance(denoiser, MixtureClassifier(PROCESS, mixture), scale=1.0)
    x, label = torch.randn(500, 2, dtype=torch.float64), torch.arange(500) % 2
    samples = DDIM(steps=50, clip=None)(guided, x, Condition(label))
    assert samples.isfinite().all()
    assert ((samples[:, 0] > 0) == (label == 0)).double().mean() > 0.99


def test_shift_multiplies_the_ratio_of_noise_to_data():
    plain, shifted = flow(100), flow(100, shift=3.0)
    ratio = (shifted.sigma / shifted.alpha) / (plain.sigma / plain.alpha)
    torch.testing.assert_close(ratio[1:-1], torch.full((99,), 3.0, dtype=torch.float64))
    assert shifted.alpha[-1] == 0 and shifted.sigma[0] == 0


def test_logit_normal_times_have_their_distribution():
    sampler = LogitNormal(PROCESS, mean=0.5, std=0.8)
    t, weights = sampler(40_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert t.min() >= 1 and t.max() <= 1000 and torch.equal(weights, torch.ones(40_000))
    for share in (0.1, 0.3, 0.5, 0.8, 0.95):
        logit = torch.logit(torch.tensor(share, dtype=torch.float64)).item()
        probability = NormalDist(0.5, 0.8).cdf(logit)
        error = (probability * (1 - probability) / 40_000) ** 0.5
        measured = (t <= round(1000 * share)).double().mean().item()
        assert measured == pytest.approx(probability, abs=4 * error)


class Zero(nn.Module):
    def forward(self, x, t, cond):
        return torch.zeros_like(x)


@pytest.mark.parametrize("process", [PROCESS, ForwardProcess(cosine())], ids=["flow", "cosine"])
@pytest.mark.parametrize("prediction", [Velocity(), V()])
def test_the_network_determines_x0_also_from_noise_alone(prediction, process):
    denoiser = Denoiser(Zero(), process, prediction)
    x0, eps = torch.randn(2, 3, 1, 2, 2)
    for t in (1, 500, 1000):
        time = torch.full((3,), t)
        x_t = process.diffuse(x0, eps, time)
        output = prediction.target(process, x0, eps, x_t, time)
        c_skip, c_out = prediction.preconditioning(process, time)
        estimate = c_skip[:, None, None, None] * x_t + c_out[:, None, None, None] * output
        torch.testing.assert_close(estimate.float(), x0, rtol=0, atol=1e-5)
        assert denoiser(x_t, time).x0.isfinite().all()


@pytest.mark.parametrize("prediction", [Eps(), Score()])
def test_predictions_without_an_x0_at_the_last_time_are_refused(prediction):
    name = type(prediction).__name__.lower()
    with pytest.raises(UserError, match=f"prediction={name} does not determine x_0 at t = 1000"):
        Denoiser(Zero(), PROCESS, prediction)
