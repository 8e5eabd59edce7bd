"""Samplers of EDM, DPM-Solver++ and UniPC: exact laws, orders, and the schedulers of diffusers."""

import math
from dataclasses import replace
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser, Mixture, MixtureDenoiser
from ddpm_lab.diffusion.analytic_propagation import propagate
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.multistep_solvers import DPMSolver3M, DPMSolverSDE, UniPC
from ddpm_lab.diffusion.ode_solvers import EDM, DPMSolver
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.diffusion.schedules import cosine, edm, geometric, linear
from ddpm_lab.diffusion.variances import BetaTilde

LINEAR = ForwardProcess(linear())


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(process, mean=0.0, std=0.5):
    return GaussianDenoiser(process, BetaTilde(), numbers(mean), numbers([std**2]))


def mixture(process):
    means = numbers([-0.8, 0.3], [0.1, -0.5], [0.9, 0.7])
    return MixtureDenoiser(process, BetaTilde(), Mixture(means, numbers(0.2, 0.5, 0.3), 0.1, None))


def std(sampler, denoiser):
    return propagate(sampler, denoiser)[1].item() ** 0.5


def spaced(levels):
    return "sigmas:" + ",".join(f"{level:.15g}" for level in levels)


@pytest.mark.parametrize("schedule", [linear, cosine, edm])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDIM, 1), (EDM, 2), (DPMSolver, 2), (DPMSolver3M, 3), (UniPC, 3)],  # UniC adds one
)
def test_solvers_converge_at_their_order(sampler, order, schedule):
    denoiser, stds = gaussian(ForwardProcess(schedule())), []
    # Noise levels in equal ratios; the step to the data is the same for each number of steps. Two
    # short steps at the beginning hide the lower order there.
    for steps in (160, 320, 640, 1280):
        h = math.log(400) / steps
        logs = [0, h**3, h**2, *(h * i for i in range(1, steps + 1))]
        stds.append(std(sampler(spacing=spaced(20 * np.exp(-np.array(logs))), clip=None), denoiser))
    gaps = np.abs(np.diff(stds))
    assert np.log2(gaps[:-1] / gaps[1:]) == pytest.approx([order] * 2, abs=0.3)


@pytest.mark.parametrize("sampler", [DDIM, EDM, DPMSolver3M, UniPC])
def test_ode_solvers_have_one_result_on_every_schedule(sampler):
    """In x / alpha the ODE depends on noise levels only, also at times between the table's."""
    sampler = sampler(spacing=spaced(np.geomspace(40, 0.05, 15)), clip=None)
    stds = [std(sampler, gaussian(ForwardProcess(f()))) for f in (linear, cosine, geometric, edm)]
    assert stds == pytest.approx([stds[-1]] * 4, rel=1e-3)  # the prior has other variances of x_T
    x = torch.randn(3, 2, dtype=torch.float64)
    ends = []
    for schedule in (linear, cosine, geometric, edm):
        process = ForwardProcess(schedule())
        x_T = 40 * process.alpha_sigma(process.time(numbers(40.0)))[0] * x
        ends.append(sampler(mixture(process), x_T))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("schedule", [linear, edm])
@pytest.mark.parametrize(
    ("sampler", "options", "order"),
    [
        (DPMSolverSDE, {}, 2),
        (EDM, {"s_churn": 10.0}, 2),
        (EDM, {"s_churn": 1e9, "s_tmin": 0.05, "s_tmax": 20.0}, 1),  # sqrt(2) at every step
        (DDIM, {"eta": 1.0}, 1),
    ],
)
def test_variance_of_sde_solvers_converges_to_the_data(sampler, options, order, schedule):
    denoiser = gaussian(ForwardProcess(schedule()), mean=0.3)
    # The step to the data returns the mean, without the deviation that the last level leaves.
    low = denoiser.process.noise_level(torch.tensor(1)).item()
    end, errors = 0.25 / math.hypot(0.5, low), []
    for steps in (50, 100, 200, 400):
        mean, variance = propagate(
            sampler(steps=steps, spacing="karras", clip=None, **options), denoiser
        )
        assert mean.item() == pytest.approx(0.3, abs=1e-4)
        errors.append(abs(variance.item() ** 0.5 - end))
    slopes = -np.diff(np.log2(errors))
    assert slopes[1:] == pytest.approx([order] * 2, abs=0.3) and errors[-1] < 0.009


def run_scheduler(scheduler, denoiser, times, x, scaled=False, **options):
    """Return the trajectory of a scheduler of diffusers with the estimates of `denoiser`.

    `scaled`: its samples are x / alpha.
    """
    states, process = [], denoiser.process
    for t, index in zip(times, scheduler.timesteps, strict=False):
        time = torch.tensor(t, dtype=torch.float64)
        alpha = process.alpha_sigma(time)[0] if scaled else 1.0
        x0 = denoiser(alpha * x, time.expand(len(x))).x0
        eps = process.eps(alpha * x, x0, time)
        output = x0 if scheduler.config.prediction_type == "sample" else eps
        x = scheduler.step(output, index, x, **{k: v() for k, v in options.items()}).prev_sample
        states.append(x)
    return states


def scheduler_and_spacing(name, steps, **options):
    """Return a scheduler of diffusers, and the spacing with its noise levels."""
    scheduler = getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02, **options)
    scheduler.set_timesteps(steps)
    return scheduler, spaced(scheduler.sigmas[:-1].tolist())


def assert_same_states(sampler, denoiser, x, noise, states, scaled=False):
    process = denoiser.process
    for (s, ours), theirs in zip(sampler.trajectory(denoiser, x, noise=noise), states, strict=True):
        alpha = process.alpha_sigma(torch.tensor(s, dtype=torch.float64))[0] if scaled else 1.0
        torch.testing.assert_close(ours, alpha * theirs, rtol=1e-5, atol=1e-5)


def normal(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator)


MULTISTEP = {"prediction_type": "sample", "use_karras_sigmas": True, "final_sigmas_type": "zero"}


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_sde_matches_diffusers(steps):
    options = MULTISTEP | {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    scheduler, spacing = scheduler_and_spacing("DPMSolverMultistepScheduler", steps, **options)
    denoiser, x = mixture(LINEAR), torch.randn(4, 2)
    sampler, noise = DPMSolverSDE(spacing=spacing, clip=None), normal(1)
    draw = {"variance_noise": lambda: noise(x)}
    states = run_scheduler(scheduler, denoiser, sampler.timesteps(LINEAR), x, **draw)
    assert_same_states(sampler, denoiser, x, normal(1), states)


@pytest.mark.parametrize("steps", [5, 20])
def test_uni_pc_matches_diffusers(steps):
    options = MULTISTEP | {"solver_order": 2, "solver_type": "bh2"}
    scheduler, spacing = scheduler_and_spacing("UniPCMultistepScheduler", steps, **options)
    denoiser, x = mixture(LINEAR), torch.randn(4, 2)
    sampler = UniPC(spacing=spacing, clip=None)
    states = run_scheduler(scheduler, denoiser, sampler.timesteps(LINEAR), x)
    assert_same_states(sampler, denoiser, x, normal(1), states)


def test_ancestral_matches_euler_ancestral_of_diffusers():
    name = "EulerAncestralDiscreteScheduler"
    scheduler, spacing = scheduler_and_spacing(name, 20, timestep_spacing="trailing")
    denoiser, x = mixture(LINEAR), torch.randn(4, 2)
    sampler = DDIM(spacing=spacing, eta=1.0, clip=None)
    times = sampler.timesteps(LINEAR)
    alpha = LINEAR.alpha_sigma(torch.tensor(times[0], dtype=torch.float64))[0]
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": lambda: generator}
    states = run_scheduler(scheduler, denoiser, times, x / alpha.float(), scaled=True, **draw)
    assert_same_states(sampler, denoiser, x, normal(1), states, scaled=True)


def test_ddim_matches_euler_of_diffusers():
    scheduler, spacing = scheduler_and_spacing("EulerDiscreteScheduler", 20, use_karras_sigmas=True)
    denoiser, x = mixture(LINEAR), torch.randn(4, 2)
    sampler = DDIM(spacing=spacing, clip=None)
    times = sampler.timesteps(LINEAR)
    alpha = LINEAR.alpha_sigma(torch.tensor(times[0], dtype=torch.float64))[0]
    states = run_scheduler(scheduler, denoiser, times, x / alpha.float(), scaled=True)
    assert_same_states(sampler, denoiser, x, normal(1), states, scaled=True)


def test_dpm_solver_3m_has_twice_the_curvature_of_diffusers():
    options = MULTISTEP | {"algorithm_type": "dpmsolver++", "solver_order": 3}
    scheduler, spacing = scheduler_and_spacing("DPMSolverMultistepScheduler", 20, **options)
    denoiser, x = mixture(LINEAR), torch.randn(4, 2)
    chain = list(DPMSolver3M(spacing=spacing, clip=None).chain(denoiser, x))
    estimates, largest = [step.estimate.x0 for step, _ in chain], 0.0
    for i, ((step, x_s), t) in enumerate(zip(chain, scheduler.timesteps, strict=True)):
        theirs = scheduler.step(step.estimate.x0, t, step.x_t).prev_sample
        missing = torch.zeros_like(x_s)
        if 2 <= i < 19:
            times = [chain[j][0].t for j in (i - 2, i - 1, i)]
            logs = [0.5 * LINEAR.log_snr(time) for time in (*times, step.s)]
            h_2, h_1, h = np.diff(logs)
            slopes = [
                h / width * (estimates[j] - estimates[j - 1])
                for j, width in ((i, h_1), (i - 1, h_2))
            ]
            alpha = LINEAR.alpha_sigma(step.s)[0]
            share = 0.5 - (math.exp(-h) - 1 + h) / h**2
            missing = alpha * share * h / (h_1 + h_2) * (slopes[0] - slopes[1])
            largest = max(largest, missing.abs().max().item())
        torch.testing.assert_close(x_s.double(), theirs.double() + missing, rtol=1e-5, atol=1e-5)
    assert largest > 1e-3


def test_karras_spacing_matches_diffusers():
    scheduler, _ = scheduler_and_spacing("DPMSolverMultistepScheduler", 12, **MULTISTEP)
    times = DDIM(steps=12, spacing="karras").timesteps(LINEAR)
    levels = LINEAR.noise_level(torch.tensor(times[:-1], dtype=torch.float64))
    torch.testing.assert_close(levels.float(), scheduler.sigmas[:-1], rtol=1e-4, atol=0)


CHURN = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.007}


@pytest.mark.parametrize("options", [{}, CHURN, {"s_churn": 1e9}], ids=["off", "range", "on"])
def test_edm_matches_algorithm_2_of_karras_et_al(options):
    process = ForwardProcess(edm())
    denoiser, z = mixture(process), torch.randn(4, 2, dtype=torch.float64)
    i, settings = (
        np.arange(9),
        {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 1e9, "s_noise": 1} | options,
    )
    levels = [*(80 ** (1 / 7) + i / 8 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0]
    x, draw = 80 * z, normal(1)

    def slope(x, level):
        time = process.time(numbers(level)).expand(len(x))
        return (x - denoiser(x, time).x0) / level

    for level, following in pairwise(levels):
        inside = settings["s_tmin"] <= level <= settings["s_tmax"]
        gamma = min(settings["s_churn"] / 9, math.sqrt(2) - 1) if inside else 0
        raised = min(level * (1 + gamma), 80.0)
        eps = settings["s_noise"] * draw(x).double() if settings["s_churn"] else 0.0
        x_hat = x + math.sqrt(max(raised**2 - level**2, 0)) * eps
        d = slope(x_hat, raised)
        x = x_hat + (following - raised) * d
        if following > 0:
            x = x_hat + (following - raised) * (d + slope(x, following)) / 2
    ours = EDM(steps=9, spacing="karras", clip=None, **options)(denoiser, 80 * z, noise=normal(1))
    torch.testing.assert_close(ours, x, rtol=1e-6, atol=1e-7)


def test_edm_calls_the_network_35_times_in_18_steps():
    calls = []

    class Counting(GaussianDenoiser):
        def forward(self, x_t, t, cond=Condition()):
            calls.append(t.item())
            return super().forward(x_t, t, cond)

    denoiser = Counting(ForwardProcess(edm()), BetaTilde(), numbers(0.0), numbers([0.25]))
    for options in ({}, {"s_churn": 30.0}):
        calls.clear()
        EDM(steps=18, spacing="karras", **options)(denoiser, torch.randn(1, 1).double())
        assert len(calls) == 35
    assert max(calls) <= 1000


def test_without_churn_edm_is_deterministic_and_draws_no_noise():
    denoiser, x = mixture(LINEAR), torch.randn(4, 2)
    EDM(steps=5, spacing="karras")(denoiser, x, noise=None)


@pytest.mark.parametrize(
    "sampler",
    [EDM(steps=10, clip=None, **CHURN), DPMSolverSDE(steps=10, clip=None)],
    ids=["edm", "sde"],
)
@pytest.mark.parametrize("spacing", ["karras", "trailing"])
def test_samples_have_the_propagated_moments(sampler, spacing):
    process, covariance = ForwardProcess(edm()), numbers([0.25, 0.1], [0.1, 0.09])
    sampler = replace(sampler, spacing=spacing)
    denoiser = GaussianDenoiser(process, BetaTilde(), numbers(0.3, -0.2), covariance)
    expected_mean, expected = propagate(sampler, denoiser)
    x = sampler(denoiser, sampler.prior(process, torch.randn(40_000, 2, dtype=torch.float64)))
    size = expected.diagonal().max().item()
    torch.testing.assert_close(x.mean(0), expected_mean, rtol=0, atol=5 * (size / 40_000) ** 0.5)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0, atol=5 * size * (2 / 40_000) ** 0.5)


def test_too_few_steps_for_the_order_raise():
    for sampler, least in ((DPMSolver3M, 4), (DPMSolverSDE, 3), (UniPC, 3)):
        with pytest.raises(ValueError, match=f"steps={least - 1} are too few.*try steps={least}"):
            sampler(steps=least - 1).timesteps(LINEAR)
        assert len(sampler(steps=least).timesteps(LINEAR)) == least + 1


def test_invalid_churn_raises():
    with pytest.raises(ValueError, match=r"s_tmin=5 is above s_tmax=1.*try"):
        EDM(s_tmin=5.0, s_tmax=1.0)
    with pytest.raises(ValueError, match="s_churn must be at least 0"):
        EDM(s_churn=-1.0)
    with pytest.raises(ValueError, match="cannot be run backwards; try sampler=ddim"):
        list(EDM(s_churn=1.0).encode(mixture(LINEAR), torch.zeros(1, 2)))
