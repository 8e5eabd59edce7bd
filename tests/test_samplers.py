"""Samplers with analytic denoisers, for which the distribution of the samples is known."""

import itertools
import random

import numpy as np
import pytest
import torch
from conftest import composed, options
from hydra.utils import instantiate

from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
from ddpm_lab.diffusion.analytic_propagation import propagate
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.langevin import Langevin, PredictorCorrector
from ddpm_lab.diffusion.ode_solvers import DPMSolver, Heun
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.samplers import DDIM, DDPM, DDPMClipped, slerp
from ddpm_lab.diffusion.schedules import cosine, geometric, jsd, linear
from ddpm_lab.diffusion.timestep_spacing import SPACINGS, timesteps
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde

LINEAR = ForwardProcess(linear())


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(process, variance, mean=0.0, std=0.5):
    """Return the exact denoiser of one number x_0 ~ N(mean, std^2)."""
    return GaussianDenoiser(process, variance, numbers(mean), numbers([std**2]))


def moments(sampler, denoiser):
    """Return mean and standard deviation of a sample of one number."""
    mean, covariance = propagate(sampler, denoiser)
    return mean.item(), covariance.item() ** 0.5


STEPS = (10, 20, 50, 100, 1000)
# Standard deviation of samples for x_0 ~ N(0, 0.5^2), linear schedule, T = 1000 (DDIM's table 1).
TABLE = {
    "eta 0": (DDIM, {"eta": 0.0}, BetaTilde(), (0.3616, 0.4305, 0.4719, 0.4858, 0.4985)),
    "eta 0.5": (DDIM, {"eta": 0.5}, BetaTilde(), (0.3551, 0.4224, 0.4661, 0.4821, 0.4980)),
    "eta 1": (DDIM, {"eta": 1.0}, BetaTilde(), (0.3228, 0.3880, 0.4432, 0.4680, 0.4961)),
    "sigma hat": (DDPM, {}, Beta(), (0.5988, 0.5463, 0.5176, 0.5086, 0.5008)),
    "eta 0.2": (DDIM, {"eta": 0.2}, BetaTilde(), (0.3606, 0.4292, 0.4710, 0.4853, 0.4984)),
    "optimal variance": (
        DDPM,
        {},
        Analytic(gaussian(LINEAR, BetaTilde()).mse()),
        (0.4999,) * 5,
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_analytic_tier_reproduces_ddim_table_1(row):
    sampler, kwargs, variance, expected = TABLE[row]
    denoiser = gaussian(LINEAR, variance)
    stds = [moments(sampler(steps=steps, clip=None, **kwargs), denoiser)[1] for steps in STEPS]
    assert np.abs(np.array(stds) - expected).max() < 5.1e-5


@pytest.mark.parametrize("bound", [0.01, 0.1])
def test_clipped_ddpm_lacks_the_variance_above_its_bound(bound):
    """x_100 is exact with the optimal variance, so the variance of x_0 has a closed form."""
    denoiser = gaussian(LINEAR, Analytic(gaussian(LINEAR, BetaTilde()).mse()))
    t, s = torch.tensor([100]), torch.tensor([1])
    sampler = DDPMClipped(spacing=[1000, 100, 1, 0], clip=None, max_last_std=bound)
    x = torch.zeros(1, 1, dtype=torch.float64)
    added = denoiser.reverse(denoiser(x, t), x, t, s).log_var.exp().item()
    alpha, sigma = (number.item() for number in LINEAR.alpha_sigma(s))
    variance = (0.5 * alpha) ** 2 + sigma**2
    gain = alpha * 0.5**2 / variance
    assert bound**2 < added < 1
    expected = gain * (variance - added + bound**2) ** 0.5
    assert moments(sampler, denoiser)[1] == pytest.approx(expected, rel=1e-9)
    wide = DDPMClipped(spacing=[1000, 100, 1, 0], clip=None, max_last_std=1)
    plain = DDPM(spacing=[1000, 100, 1, 0], clip=None)
    assert moments(wide, denoiser)[1] == pytest.approx(moments(plain, denoiser)[1], rel=1e-12)


# Schedules for which 200 steps are too coarse near the data.
COARSE = {"constant": 0.2, "warmup10": 0.12}


@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_sampler_recovers_the_data_on_every_schedule(sampler, schedule):
    process = ForwardProcess(instantiate(composed(f"schedule={schedule}").schedule))
    sampler = instantiate(composed(f"sampler={sampler}").sampler, steps=200, clip=None)
    mean, std = moments(sampler, gaussian(process, BetaTilde(), mean=0.3))
    assert mean == pytest.approx(0.3, abs=0.01)
    assert std == pytest.approx(0.5, abs=COARSE.get(schedule, 0.065))


@pytest.mark.parametrize("schedule", [cosine, linear, jsd, geometric])
@pytest.mark.parametrize("sampler", [Heun, DPMSolver])
def test_solvers_are_stable_in_the_first_step(sampler, schedule):
    denoiser = gaussian(ForwardProcess(schedule()), BetaTilde())
    sampler = sampler(steps=25, spacing="uniform", clip=None)
    assert moments(sampler, denoiser)[1] == pytest.approx(0.5, abs=0.1)
    start = sampler.prior(denoiser.process, torch.ones(1, 1, dtype=torch.float64))
    trajectory = [x.abs().item() for _, x in sampler.trajectory(denoiser, start)]
    assert max(trajectory) <= start.item() * 1.01, "x_t is bounded by x_T"


@pytest.mark.parametrize("schedule", [linear, cosine])
@pytest.mark.parametrize(("sampler", "order"), [(DDIM, 1), (Heun, 2), (DPMSolver, 2)])
def test_solvers_converge_at_their_order(sampler, order, schedule):
    # Even chains, below the last steps of cosine, whose beta is clipped and cannot be refined.
    # Differences of successive refinements cancel the error of the last step, which is constant.
    denoiser = gaussian(ForwardProcess(schedule(4000)), BetaTilde())
    top, stds = 4000 if schedule is linear else 3600, []
    for steps in (80, 160, 320, 640):
        times = [round(1 + (top - 1) * (steps - i) / steps) for i in range(steps + 1)]
        stds.append(moments(sampler(spacing=[*times, 0], clip=None), denoiser)[1])
    gaps = np.abs(np.diff(stds))
    assert np.log2(gaps[:-1] / gaps[1:]) == pytest.approx([order, order], abs=0.3)


@pytest.mark.parametrize(
    "sampler",
    [
        Heun(steps=12, clip=None),
        DPMSolver(steps=12, clip=None),
        Langevin(steps=12, clip=None, corrections=2),
        PredictorCorrector(steps=12, clip=None),
        DDIM(steps=12, clip=None, eta=1.0, sigma_hat=True),
    ],
)
@pytest.mark.parametrize("schedule", [linear, geometric])
def test_correlated_samples_have_the_propagated_moments(sampler, schedule):
    process, covariance = ForwardProcess(schedule()), numbers([0.25, 0.1], [0.1, 0.09])
    denoiser = GaussianDenoiser(process, BetaTilde(), numbers(0.3, -0.2), covariance)
    expected_mean, expected = propagate(sampler, denoiser)
    x = sampler(denoiser, sampler.prior(process, torch.randn(40_000, 2, dtype=torch.float64)))
    size = expected.diagonal().max().item()
    torch.testing.assert_close(x.mean(0), expected_mean, rtol=0, atol=5 * (size / 40_000) ** 0.5)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0, atol=5 * size * (2 / 40_000) ** 0.5)


def test_sigma_hat_is_ddpm_with_beta():
    denoiser, x = gaussian(LINEAR, Beta()), torch.randn(5, 1, dtype=torch.float64)
    samplers = DDPM(steps=40), DDIM(steps=40, eta=1.0, sigma_hat=True)
    samples = [s(denoiser, x, noise=PerSampleGenerator(0, range(5))) for s in samplers]
    torch.testing.assert_close(*samples)


def test_encode_decode_error_falls_with_steps():
    denoiser, errors = gaussian(LINEAR, BetaTilde()), []
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    for steps in (50, 100, 200):
        sampler = DDIM(steps=steps, clip=None)
        x_T = list(sampler.encode(denoiser, x))[-1][1]
        errors.append((sampler(denoiser, x_T) - x).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3) == errors[1] / errors[2]
    assert errors[2] < 0.03
    assert x_T.std() == pytest.approx(2 * x.std().item(), rel=0.05), "N(0, 0.5^2) to N(0, 1)"


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(eta=0.5), Heun()])
def test_encode_requires_a_deterministic_sampler(sampler):
    with pytest.raises(ValueError, match="cannot be run backwards"):
        list(sampler.encode(gaussian(LINEAR, BetaTilde()), torch.zeros(1, 1)))


def test_dynamic_threshold_scales_the_quantile_to_the_bound():
    mean, covariance = numbers(*[3.0] * 10), 0.25 * torch.eye(10, dtype=torch.float64)
    denoiser = GaussianDenoiser(LINEAR, BetaTilde(), mean, covariance)
    x, t = torch.randn(2, 10), torch.tensor([400, 400])

    def x0(clip, quantile=None):
        sampler = DDIM(clip=clip, dynamic_threshold=quantile)
        return sampler.estimate(denoiser, x, t, Condition()).x0

    unbounded = x0(None)
    bound = unbounded.abs().sort(1).values[:, 8:9].clamp(min=1)
    torch.testing.assert_close(x0(1.0, 0.9), unbounded.clamp(-bound, bound) / bound)
    assert torch.equal(x0(unbounded.abs().max().item() + 1, 0.9), unbounded)


def test_slerp_preserves_the_norm():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    path = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(path.flatten(1).norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3]))[0], a)


@pytest.mark.parametrize("last", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_has_the_requested_steps(spacing, last):
    for steps in range(1, last + 1):
        times = timesteps(last, steps, spacing)
        assert len(times) == steps + 1 and times[-1] == 0 and 1 <= times[-2] <= times[0] <= last
        assert all(t > s for t, s in itertools.pairwise(times))


def test_spacing_examples():
    assert timesteps(1000, 4, "leading") == [751, 501, 251, 1, 0]
    assert timesteps(1000, 4, "trailing") == [1000, 750, 500, 250, 0]
    squares = [int(r**2) + 1 for r in np.linspace(0, 800**0.5, 10)]
    assert timesteps(1000, 10, "quadratic") == [*reversed(squares), 0]
    assert timesteps(100, None, "3,2") == [100, 51, 50, 25, 1, 0]
    times = timesteps(1000, 250, "90,60,60,20,20")
    assert times[0] == 1000 and len(times) == 251


def space_timesteps(last, text):
    """improved-diffusion's function of this name, which counts times from 0."""
    if text.startswith("ddim"):
        for stride in range(1, last):
            if len(range(0, last, stride)) == int(text[4:]):
                return {*range(0, last, stride)}
        raise ValueError
    counts = [int(count) for count in text.split(",")]
    times, start = set(), 0
    for i, count in enumerate(counts):
        size = last // len(counts) + (i < last % len(counts))
        if count > size:
            raise ValueError
        stride, offset = 1 if count <= 1 else (size - 1) / (count - 1), 0.0
        for _ in range(count):
            times.add(start + round(offset))
            offset += stride
        start += size
    return times


@pytest.mark.parametrize("last", [1, 2, 7, 50, 99, 100, 101, 300, 1000, 4000])
def test_sections_match_improved_diffusion(last):
    generator = random.Random(last)
    counts = {1, 2, last // 2, last, *(generator.randint(1, last) for _ in range(60))}
    texts = [f"{count}" for count in counts if 1 <= count <= last]
    for parts in (2, 3, 5):
        texts += [
            ",".join(f"{generator.randint(1, last // parts)}" for _ in range(parts))
            for _ in range(40 if last >= parts else 0)
        ]
    for text in [*texts, *(["10,15,20"] if last == 300 else [])]:
        times = sorted((t + 1 for t in space_timesteps(last, text)), reverse=True)
        assert timesteps(last, None, text) == [*times, 0], text


@pytest.mark.parametrize("last", [2, 7, 100, 1000])
def test_ddim_n_matches_improved_diffusion(last):
    for count in range(1, last + 1):
        try:
            times = sorted((t + 1 for t in space_timesteps(last, f"ddim{count}")), reverse=True)
        except ValueError:
            with pytest.raises(ValueError, match=rf"spacing=ddim{count} needs an integer stride"):
                timesteps(last, None, f"ddim{count}")
        else:
            assert timesteps(last, None, f"ddim{count}") == [*times, 0]


@pytest.mark.parametrize("last", [15, 100, 128, 1000, 4000])
def test_spacings_match_diffusers_and_ddim(last):
    for steps in range(1, last + 1, max(1, last // 150)):
        leading = [1 + t for t in np.arange(steps) * (last // steps)]
        assert timesteps(last, steps, "leading")[-2::-1] == leading
        trailing = np.round(np.arange(last, 0, -last / steps))
        if len(trailing) == steps:  # diffusers rounds to one step more for some numbers
            assert timesteps(last, steps, "trailing")[:-1] == [*trailing]
        squares = [int(r**2) + 1 for r in np.linspace(0, (0.8 * last) ** 0.5, steps)][::-1]
        if steps > 1 and len({*squares}) == steps:  # DDIM's code repeats times
            assert timesteps(last, steps, "quadratic")[:-1] == squares


@pytest.mark.parametrize(
    ("steps", "spacing", "message"),
    [
        (251, "90,60,60,20,20", "makes 250 steps"),
        (None, "300,10,10,10,10", "300 times in a section"),
        (None, "x", "spacing=x"),
        (None, [10, 20, 0], "must descend"),
        (None, [10, 5], "must descend"),
        (None, [1001, 0], "must descend"),
    ],
)
def test_invalid_spacings_raise(steps, spacing, message):
    with pytest.raises(ValueError, match=message):
        timesteps(1000, steps, spacing)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_ddim_matches_the_recursion_of_song_et_al(eta, steps):
    process = ForwardProcess(cosine())
    sampler = DDIM(steps=steps, eta=eta, clip=None)
    times, ab, variance = sampler.timesteps(process), process.table[:, 0].numpy() ** 2, 1.0
    for t, s in itertools.pairwise(times):
        gain = 0.25 * np.sqrt(ab[t]) / (0.25 * ab[t] + 1 - ab[t])
        sigma2 = eta**2 * (1 - ab[s]) / (1 - ab[t]) * (1 - ab[t] / ab[s])
        eps = (1 - np.sqrt(ab[t]) * gain) / np.sqrt(1 - ab[t])
        slope = np.sqrt(ab[s]) * gain + np.sqrt(max(1 - ab[s] - sigma2, 0)) * eps
        variance = slope**2 * variance + sigma2
    std = moments(sampler, gaussian(process, BetaTilde()))[1]
    assert std == pytest.approx(variance**0.5, rel=1e-9)


def test_ddim_with_eta_1_is_ddpm_with_beta_tilde():
    denoiser, x = gaussian(LINEAR, BetaTilde()), torch.randn(5, 1, dtype=torch.float64)
    samplers = DDPM(steps=40), DDIM(steps=40, eta=1.0)
    samples = [s(denoiser, x, noise=PerSampleGenerator(0, range(5))) for s in samplers]
    torch.testing.assert_close(*samples)


@pytest.mark.parametrize("sampler", [DDPM(steps=30, clip=None), DDIM(steps=30, eta=0.5, clip=None)])
def test_samples_have_the_propagated_moments(sampler):
    denoiser = gaussian(LINEAR, Beta(), mean=0.3)
    mean, std = moments(sampler, denoiser)
    x = sampler(denoiser, torch.randn(100_000, 1))
    assert x.mean().item() == pytest.approx(mean, abs=4 * std / 100_000**0.5)
    assert x.std().item() == pytest.approx(std, rel=4 / 200_000**0.5)


@pytest.mark.parametrize("last", [1, 2, 10, 1000])
def test_timesteps_descend_to_0_for_any_number_of_steps(last):
    process = ForwardProcess(geometric(last))
    for steps in range(1, last + 1):
        times = DDPM(steps=steps).timesteps(process)
        assert times[0] == last and times[-1] == 0 and len(times) == steps + 1
        assert all(t > s for t, s in itertools.pairwise(times))
    assert DDPM().timesteps(process) == list(range(last, -1, -1))


def test_invalid_steps_and_spacings_raise():
    for steps in (0, -1):
        with pytest.raises(ValueError, match="steps must be at least 1"):
            DDPM(steps=steps)
    with pytest.raises(ValueError, match=r"steps must be in 1\.\.1000"):
        DDPM(steps=1001).timesteps(LINEAR)
    with pytest.raises(ValueError, match="spacing=linear is not one of uniform, quadratic"):
        DDPM(spacing="linear")


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_invalid_eta_raises(eta):
    with pytest.raises(ValueError, match="eta"):
        DDIM(eta=eta)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_invalid_clip_raises(clip):
    with pytest.raises(ValueError, match="clip"):
        DDPM(clip=clip)


def test_last_step_adds_no_noise():
    denoiser = gaussian(LINEAR, Beta())
    x = torch.randn(3, 1)
    sampler = DDPM(steps=1, clip=None)
    torch.testing.assert_close(sampler(denoiser, x), denoiser(x, torch.full((3,), 1000)).x0)


def test_clipping_bounds_x0_and_what_follows_from_it():
    denoiser, x = gaussian(LINEAR, BetaTilde(), mean=3.0), torch.randn(3, 1)
    assert DDIM(steps=10, clip=1.0)(denoiser, x).abs().max() <= 1.0
    assert DDIM(steps=10, clip=None)(denoiser, x).abs().max() > 2.0


TWO_STEPS = [600, 300, 0]


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(spacing=TWO_STEPS),
        DDIM(spacing=TWO_STEPS),
        DDIM(spacing=TWO_STEPS, eta=1.0),
        Heun(spacing=TWO_STEPS),
        DPMSolver(spacing=TWO_STEPS),
    ],
)
def test_trajectory_of_a_clipped_x0(sampler):
    outside = gaussian(LINEAR, BetaTilde(), mean=30.0, std=0.1)
    at_bound = gaussian(LINEAR, BetaTilde(), mean=1.0, std=0.0)
    x = torch.randn(3, 1, dtype=torch.float64)
    trajectories = (sampler.trajectory(d, x, noise=torch.ones_like) for d in (outside, at_bound))
    for (_, clipped), (_, expected) in zip(*trajectories, strict=True):
        torch.testing.assert_close(clipped, expected)


def test_per_sample_noise_is_independent_of_the_batch():
    like = torch.empty(4, 1, 3, 3)
    batch, single = PerSampleGenerator(5, range(4)), PerSampleGenerator(5, [2])
    for _ in range(3):
        assert torch.equal(batch(like)[2:3], single(like[:1]))
    a, b, c = (PerSampleGenerator(seed, [i])(like[:1]) for seed, i in ((5, 0), (5, 1), (6, 0)))
    assert not torch.equal(a, b) and not torch.equal(b, c)


def test_per_sample_noise_is_standard_normal():
    z = PerSampleGenerator(0, range(2000))(torch.empty(2000, 100))
    assert abs(z.mean().item()) < 0.01 and z.std().item() == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(z[:50]).triu(1).abs().max() < 0.5, "neighbouring seeds are unrelated"


def test_self_conditioning_in_encode():
    calls = []

    class SelfConditioning(GaussianDenoiser):
        self_conditioning = True

        def forward(self, x_t, t, cond=Condition()):
            estimate = super().forward(x_t, t)
            calls.append((cond.previous_x0, estimate.x0))
            return estimate

    denoiser = SelfConditioning(LINEAR, BetaTilde(), numbers(0.0), numbers([0.25]))
    list(DDIM(steps=4, clip=None).encode(denoiser, torch.randn(3, 1, dtype=torch.float64)))
    assert calls[0][0] is None
    for (_, estimate), (previous, _) in itertools.pairwise(calls):
        assert torch.equal(previous, estimate)
