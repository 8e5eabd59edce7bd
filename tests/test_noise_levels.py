"""Times between those of the schedule, and EDM (Karras et al., 2022) in terms of this project."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
from ddpm_lab.diffusion.analytic_propagation import propagate
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.denoiser import Denoiser
from ddpm_lab.diffusion.multistep_solvers import DPMSolver3M, DPMSolverSDE, UniPC
from ddpm_lab.diffusion.objectives import NoisedBatch, Simple
from ddpm_lab.diffusion.ode_solvers import EDM
from ddpm_lab.diffusion.predictions import Eps, Mean, Score, V
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM, DDPM
from ddpm_lab.diffusion.schedules import cosine, edm, flow, geometric, linear
from ddpm_lab.diffusion.timestep_samplers import LogNormal
from ddpm_lab.diffusion.timestep_spacing import timesteps
from ddpm_lab.diffusion.variances import Analytic, BetaTilde
from ddpm_lab.networks.mlp import MLP

PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, cosine, geometric, edm)}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
BETWEEN = torch.tensor([0.25, 1.0, 1.5, 2.0, 333.3, 500.5, 998.9, 1000.0], dtype=torch.float64)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@EVERY_PROCESS
def test_whole_float_times_equal_integer_times(process):
    t = torch.arange(1001)
    for function in (process.alpha_sigma, process.log_snr, process.scale, process.noise_level):
        torch.testing.assert_close(function(t.double()), function(t), rtol=1e-12, atol=1e-15)


@EVERY_PROCESS
def test_float_times_are_a_process(process):
    alpha, sigma = process.alpha_sigma(BETWEEN)
    scale = torch.hypot(process.data_std * alpha, sigma)
    torch.testing.assert_close(process.scale(BETWEEN), scale)
    torch.testing.assert_close(process.log_snr(BETWEEN), 2 * (alpha / sigma).log())
    assert (process.noise_level(BETWEEN).diff() > 0).all() and (alpha.diff() <= 1e-12).all()
    # The posterior of a chain from 333.3 over 1.5, by Bayes' rule.
    t, s = BETWEEN[4], BETWEEN[2]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    gain = alpha_t / alpha_s
    beta = sigma_t**2 - gain**2 * sigma_s**2
    torch.testing.assert_close(process.beta(t, s), beta)
    torch.testing.assert_close(process.beta_tilde(t, s), beta * sigma_s**2 / sigma_t**2)


@EVERY_PROCESS
def test_log_snr_is_linear_between_the_times_of_the_table(process):
    low, middle, high = (process.log_snr(numbers(5 + share)) for share in (0.0, 0.3, 1.0))
    torch.testing.assert_close(middle, 0.7 * low + 0.3 * high, rtol=1e-12, atol=1e-12)
    # Below 1 the noise level is linear.
    low, high = (process.noise_level(numbers(t)) for t in (0.3, 1.0))
    torch.testing.assert_close(low, 0.3 * high)


@EVERY_PROCESS
def test_float_times_preserve_the_variance_or_alpha(process):
    alpha, sigma = process.alpha_sigma(BETWEEN)
    exploding = process.table[-1, 0] == 1
    constant = alpha if exploding else torch.hypot(alpha, sigma)
    torch.testing.assert_close(constant, torch.ones_like(alpha), rtol=0, atol=1e-12)


@EVERY_PROCESS
def test_time_inverts_noise_level(process):
    torch.testing.assert_close(process.time(process.noise_level(BETWEEN)), BETWEEN)
    assert process.time(process.noise_level(BETWEEN[4])).item() == pytest.approx(333.3)
    ends = process.time(process.noise_level(torch.tensor([1, 1000])) * numbers(0.5, 2.0))
    torch.testing.assert_close(ends, numbers(0.5, 1000.0))


def test_schedule_of_one_step():
    process = ForwardProcess(geometric(1))
    levels = numbers(5.0, 50.0, 500.0)
    torch.testing.assert_close(process.time(levels), numbers(0.1, 1.0, 1.0))
    torch.testing.assert_close(process.noise_level(numbers(0.1, 1.0)), levels[:2])


def test_error_of_the_interpolation():
    """Errors of docs/concepts.md: zero for geometric, and of second order in 1 / T for cosine."""
    t = torch.arange(1, 1000, dtype=torch.float64) + 0.5
    sigma = 0.01 * 5000 ** ((t - 1) / 999)
    torch.testing.assert_close(PROCESSES["geometric"].alpha_sigma(t)[1], sigma, rtol=1e-12, atol=0)

    def cosine_error(steps, low, high):
        t = torch.arange(low * steps // 1000, high * steps // 1000, dtype=torch.float64) + 0.5
        f = [
            torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
            for time in (t / steps, numbers(0.0))
        ]
        alpha_bar = f[0] / f[1]
        exact = alpha_bar.log() - torch.log1p(-alpha_bar)
        return (ForwardProcess(cosine(steps)).log_snr(t) - exact).abs().max().item()

    assert cosine_error(1000, 10, 990) < 0.0023
    assert cosine_error(1000, 100, 900) < 2.5e-5
    assert cosine_error(1000, 100, 900) / cosine_error(2000, 100, 900) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("prediction", [Eps(), V(), Score(), Mean()])
@EVERY_PROCESS
def test_denoiser_at_float_times(process, prediction):
    times = []

    class Network(nn.Module):
        def forward(self, x, t, cond):
            times.append(t)
            return x

    denoiser = Denoiser(Network(), process, prediction)
    x = torch.randn(4, 3)
    whole = denoiser(x, torch.tensor([1, 2, 500, 1000])).x0
    same = denoiser(x, numbers(1, 2, 500, 1000)).x0
    torch.testing.assert_close(same, whole, rtol=1e-5, atol=1e-6)
    t = numbers(1.5, 2.5, 500.2, 999.5)
    x0, eps = torch.randn(2, 4, 3).double()
    x_t = process.diffuse(x0, eps, t)
    target = prediction.target(process, x0, eps, x_t, t)
    c_skip, c_out = prediction.preconditioning(process, t)
    torch.testing.assert_close(c_skip[:, None] * x_t + c_out[:, None] * target, x0)
    denoiser(x, t)
    assert times[-1].dtype == torch.float32 and times[-1].tolist() == pytest.approx(t.tolist())


@EVERY_PROCESS
@pytest.mark.parametrize("rho", [7.0, 3.0, 1.0])
def test_karras_spacing_has_the_noise_levels_of_equation_5(process, rho):
    sampler = DDIM(steps=9, spacing="karras" if rho == 7 else f"karras{rho:g}", clip=None)
    times = sampler.timesteps(process)
    low, high = process.noise_level(torch.tensor([1, 1000])).tolist()
    i = np.arange(9)
    expected = (high ** (1 / rho) + i / 8 * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    levels = process.noise_level(torch.tensor(times[:-1], dtype=torch.float64))
    np.testing.assert_allclose(levels, expected, rtol=1e-9)
    assert times[0] == pytest.approx(1000) and times[-2:] == [pytest.approx(1), 0]
    assert min(times[:-1]) >= 1, "the network was not trained below"


def test_karras_range_and_noise_levels_by_hand():
    process = PROCESSES["cosine"]
    sampler = DDIM(steps=5, spacing="karras5:0.01,80")
    levels = process.noise_level(torch.tensor(sampler.timesteps(process)[:-1]).double())
    expected = np.linspace(80**0.2, 0.01**0.2, 5) ** 5
    np.testing.assert_allclose(levels, expected, rtol=1e-4)
    times = DDIM(steps=None, spacing="sigmas:80,10,1,0.1").timesteps(process)
    levels = process.noise_level(torch.tensor(times[:-1], dtype=torch.float64))
    torch.testing.assert_close(levels, numbers(80, 10, 1, 0.1))
    z = torch.randn(3, 2)
    scale = process.scale(torch.tensor(times[0], dtype=torch.float64)).item()
    torch.testing.assert_close(sampler.prior(process, z), scale * z)


@pytest.mark.parametrize(
    ("spacing", "steps", "message"),
    [
        ("karras7:0.0001,80", 5, "spacing=karras7:0.0001,80 must descend from at most 80"),
        ("karras7:0.002,90", 5, "must descend from at most 80 to at least 0.002"),
        ("karras:1,0.1", 5, "must descend"),
        ("sigmas:1,10", None, "must descend"),
        ("sigmas:10,1", 3, "spacing=sigmas:10,1 makes 2 steps, but steps=3; try steps=2"),
    ],
)
def test_invalid_noise_levels_raise(spacing, steps, message):
    with pytest.raises(ValueError, match=message):
        DDIM(steps=steps, spacing=spacing).timesteps(PROCESSES["edm"])


def test_misspelled_karras_raises():
    for spacing in ("karas", "karras:1", "sigmas:", "sigmas:1;2"):
        with pytest.raises(ValueError, match="is not one of uniform, quadratic"):
            DDIM(spacing=spacing)


def test_float_times_are_for_samplers():
    with pytest.raises(ValueError, match="spacing=karras has times between"):
        timesteps(1000, 5, "karras")
    process = PROCESSES["linear"]
    denoiser = GaussianDenoiser(process, BetaTilde(), numbers(0.0), numbers([0.25]))
    denoiser.variance = Analytic(denoiser.mse())
    with pytest.raises(ValueError, match=r"variance=analytic.*try sampler.spacing=quadratic_full"):
        DDPM(steps=5, spacing="karras")(denoiser, torch.zeros(1, 1))


def test_times_before_a_schedule_ends_in_noise():
    process, t = ForwardProcess(flow()), numbers(999.0, 999.5, 999.99, 1000.0)
    alpha, sigma = process.alpha_sigma(t)
    torch.testing.assert_close(alpha + sigma, numbers(1, 1, 1, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(alpha / sigma, alpha[0] / sigma[0] * numbers(1, 0.5, 0.01, 0))
    torch.testing.assert_close(process.time(process.noise_level(t)), t)
    times = DDIM(steps=5, spacing="karras").timesteps(process)
    assert times[0] == pytest.approx(999) and times[-2:] == [pytest.approx(1), 0]
    assert DDIM(steps=5, spacing="karras7:0.01,1e6").timesteps(process)[0] > 999.9


@pytest.mark.parametrize("sampler", [EDM(s_churn=2.0), DPMSolver3M(), DPMSolverSDE(), UniPC()])
def test_solvers_begin_in_noise_alone(sampler):
    process = ForwardProcess(flow())
    denoiser = GaussianDenoiser(process, BetaTilde(), numbers(0.3), numbers([0.25]))
    sampler = replace(sampler, steps=100, spacing="trailing", clip=None)
    mean, variance = propagate(sampler, denoiser)
    assert mean.item() == pytest.approx(0.3, abs=0.01)
    assert variance.item() ** 0.5 == pytest.approx(0.5, abs=0.02)


class EDMPrecond(nn.Module):
    """D(x; sigma) by the formulas of Karras et al. (2022, eq. 7 and table 1)."""

    def __init__(self, network, sigma_data=0.5):
        super().__init__()
        self.network, self.sigma_data = network, sigma_data

    def forward(self, x, sigma):
        sigma = sigma[:, None]
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        c_in = 1 / variance.sqrt()
        c_noise = sigma[:, 0].log() / 4
        return c_skip * x + c_out * self.network(c_in * x, c_noise)


class OnNoise(nn.Module):
    """A network of c_noise that has the outputs of `network`, with the other sign, at its times.

    In schedule=edm the time is affine in log sigma = 4 c_noise.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, c_noise):
        t = 1 + 999 * (4 * c_noise - math.log(0.002)) / math.log(80 / 0.002)
        return -self.network(x, t.float(), Condition())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_v_prediction_is_the_preconditioning_of_edm(dtype):
    process = ForwardProcess(edm())
    network = MLP((2,), channels=32).to(dtype)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    denoiser, peer = Denoiser(network, process, V()), EDMPrecond(OnNoise(network))
    sigma = numbers(0.002, 0.05, 0.5, 3.0, 79.0)
    x = (torch.randn(5, 2, dtype=torch.float64) * (sigma[:, None] ** 2 + 0.25).sqrt()).to(dtype)
    with torch.no_grad():
        ours, theirs = denoiser(x, process.time(sigma)).x0, peer(x, sigma.to(dtype))
    assert (ours - theirs).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-6)
    c_skip, c_out = V().preconditioning(process, process.time(sigma))
    variance = sigma**2 + 0.25
    torch.testing.assert_close(c_skip, 0.25 / variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(-c_out, sigma * 0.5 / variance.sqrt(), rtol=1e-9, atol=0)


def test_weight_of_edm_is_the_unweighted_error_of_v():
    process = ForwardProcess(edm())
    sigma = numbers(0.01, 0.3, 2.0, 50.0)
    t = process.time(sigma)
    x0, eps = 0.5 * torch.randn(4, 3).double(), torch.randn(4, 3).double()
    x_t = process.diffuse(x0, eps, t)

    class Network(nn.Module):
        def forward(self, x, t, cond):
            return torch.sin(3 * x)

    denoiser = Denoiser(Network(), process, V())
    losses = Simple()(denoiser, NoisedBatch(x0, eps, x_t, t, Condition(), None))
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2  # lambda(sigma) of table 1
    expected = weight * (denoiser(x_t, t).x0 - x0).square().mean(1)
    torch.testing.assert_close(losses, expected)


def test_log_normal_times_have_the_noise_levels_of_edm():
    process = ForwardProcess(edm())
    generator = torch.Generator().manual_seed(0)
    t, weight = LogNormal(process)(100_000, torch.device("cpu"), generator)
    assert t.dtype == torch.float64 and (weight == 1).all() and len(t.unique()) > 90_000
    logs = process.noise_level(t).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.015)
    assert logs.std().item() == pytest.approx(1.2, abs=0.012)
    quantiles = torch.quantile(logs, numbers(0.1, 0.9)).tolist()
    assert quantiles == pytest.approx([-1.2 - 1.2816 * 1.2, -1.2 + 1.2816 * 1.2], abs=0.03)
    clamped, _ = LogNormal(process, mean=9.0, std=9.0)(1000, torch.device("cpu"))
    assert clamped.min() == 1 and clamped.max() == 1000


def test_unit_variance_at_every_noise_level():
    process = ForwardProcess(edm(data_std=0.5))
    t = process.time(numbers(0.002, 0.5, 80.0))
    x = process.diffuse(0.5 * torch.randn(3, 50_000).double(), torch.randn(3, 50_000).double(), t)
    std = (x / process.scale(t)[:, None]).std(1)
    torch.testing.assert_close(std, numbers(1, 1, 1), rtol=0.015, atol=0)
