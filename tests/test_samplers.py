"""Samplers on data whose denoiser is exact: the law of what comes out is known."""

import itertools
import random

import numpy as np
import pytest
import torch
from conftest import composed, options
from hydra.utils import instantiate

from ddpm_lab.diffusion import analytic_denoisers, analytic_propagation
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.langevin import Langevin, PredictorCorrector
from ddpm_lab.diffusion.ode_solvers import DPMSolver, Heun
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.samplers import DDIM, DDPM, slerp
from ddpm_lab.diffusion.schedules import cosine, geometric, linear
from ddpm_lab.diffusion.timestep_spacing import SPACINGS, timesteps
from ddpm_lab.diffusion.variances import Analytic, Beta, BetaTilde

LINEAR = ForwardProcess(linear())


def GaussianDenoiser(process, variance, mean=0.0, std=0.5):  # noqa: N802
    """Exact, for one number x_0 ~ N(mean, std^2)."""
    numbers = (
        torch.tensor([mean], dtype=torch.float64),
        torch.tensor([[std**2]], dtype=torch.float64),
    )
    return analytic_denoisers.GaussianDenoiser(process, variance, *numbers)


def law(sampler, denoiser):
    """Mean and standard deviation of the one number that comes out."""
    mean, covariance = analytic_propagation.propagate(sampler, denoiser)
    return mean.item(), covariance.item() ** 0.5


STEPS = (10, 20, 50, 100, 1000)
# Standard deviation of the samples for x_0 ~ N(0, 0.5^2), linear schedule, T = 1000: the order of DDIM's table 1.
TABLE = {
    "eta 0": (DDIM, {"eta": 0.0}, BetaTilde(), (0.3616, 0.4305, 0.4719, 0.4858, 0.4985)),
    "eta 0.5": (DDIM, {"eta": 0.5}, BetaTilde(), (0.3551, 0.4224, 0.4661, 0.4821, 0.4980)),
    "eta 1": (DDIM, {"eta": 1.0}, BetaTilde(), (0.3228, 0.3880, 0.4432, 0.4680, 0.4961)),
    "sigma hat": (DDPM, {}, Beta(), (0.5988, 0.5463, 0.5176, 0.5086, 0.5008)),
    "eta 0.2": (DDIM, {"eta": 0.2}, BetaTilde(), (0.3606, 0.4292, 0.4710, 0.4853, 0.4984)),
    "optimal variance": (
        DDPM,
        {},
        Analytic(GaussianDenoiser(LINEAR, BetaTilde()).mse()),
        (0.4999, 0.4999, 0.4999, 0.4999, 0.4999),
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_analytic_table_of_ddim(row):
    sampler, kwargs, variance, expected = TABLE[row]
    denoiser = GaussianDenoiser(LINEAR, variance)
    found = [law(sampler(steps=steps, clip=None, **kwargs), denoiser)[1] for steps in STEPS]
    assert np.abs(np.array(found) - expected).max() < 5.1e-5


# Schedules that leave the data so fast that 200 steps are too coarse there.
COARSE = {"constant": 0.2, "warmup10": 0.12}


@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_sampler_finds_the_data_on_every_schedule(sampler, schedule):
    config = composed(
        f"sampler={sampler}", f"schedule={schedule}", "sampler.steps=200", "sampler.clip=null"
    )
    denoiser = GaussianDenoiser(ForwardProcess(instantiate(config.schedule)), BetaTilde(), mean=0.3)
    mean, std = law(instantiate(config.sampler), denoiser)
    assert mean == pytest.approx(0.3, abs=0.01)  # what remains of x_T's mean
    assert std == pytest.approx(0.5, abs=COARSE.get(schedule, 0.065))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "jsd", "geometric"])
@pytest.mark.parametrize("sampler", [Heun, DPMSolver])
def test_solvers_do_not_blow_up_where_noise_falls_by_orders_of_magnitude_at_once(sampler, schedule):
    denoiser = GaussianDenoiser(
        ForwardProcess(instantiate(composed(f"schedule={schedule}").schedule)), BetaTilde()
    )
    made = sampler(steps=25, spacing="uniform", clip=None)
    assert law(made, denoiser)[1] == pytest.approx(0.5, abs=0.1)
    start = made.prior(denoiser.process, torch.ones(1, 1, dtype=torch.float64))
    trajectory = [x.abs().item() for _, x in made.trajectory(denoiser, start)]
    assert max(trajectory) <= start.item() * 1.01, (
        "no stop lies further out than the noise it came from"
    )


@pytest.mark.parametrize("schedule", [linear, cosine])
@pytest.mark.parametrize(("sampler", "order"), [(DDIM, 1), (Heun, 2), (DPMSolver, 2)])
def test_solvers_converge_at_their_order(sampler, order, schedule):
    # Even chains, below the last steps of cosine, which are cut at beta = 0.999 and so cannot be refined.
    # Differences of successive refinements are free of what the last step, which is always the same, leaves.
    denoiser, top = (
        GaussianDenoiser(ForwardProcess(schedule(4000)), BetaTilde()),
        4000 if schedule is linear else 3600,
    )
    stds = []
    for steps in (80, 160, 320, 640):
        times = [round(1 + (top - 1) * (steps - i) / steps) for i in range(steps + 1)]
        stds.append(law(sampler(spacing=[*times, 0], clip=None), denoiser)[1])
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
def test_correlated_samples_have_the_propagated_law(sampler, schedule):
    process, mean = ForwardProcess(schedule()), torch.tensor([0.3, -0.2], dtype=torch.float64)
    covariance = torch.tensor([[0.25, 0.1], [0.1, 0.09]], dtype=torch.float64)
    denoiser = analytic_denoisers.GaussianDenoiser(process, BetaTilde(), mean, covariance)
    expected_mean, expected = analytic_propagation.propagate(sampler, denoiser)
    x = sampler(denoiser, sampler.prior(process, torch.randn(40_000, 2, dtype=torch.float64)))
    size = expected.diagonal().max().item()
    torch.testing.assert_close(x.mean(0), expected_mean, rtol=0, atol=5 * (size / 40_000) ** 0.5)
    torch.testing.assert_close(x.T.cov(), expected, rtol=0, atol=5 * size * (2 / 40_000) ** 0.5)


def test_sigma_hat_is_ddpm_with_beta():
    denoiser, x = GaussianDenoiser(LINEAR, Beta()), torch.randn(5, 1, dtype=torch.float64)
    made = [
        sampler(denoiser, x, noise=PerSampleGenerator(0, range(5)))
        for sampler in (DDPM(steps=40), DDIM(steps=40, eta=1.0, sigma_hat=True))
    ]
    torch.testing.assert_close(*made)


def test_encoding_and_decoding_meet_as_steps_grow():
    denoiser, x = (
        GaussianDenoiser(LINEAR, BetaTilde()),
        torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None],
    )
    errors = []
    for steps in (50, 100, 200):
        sampler = DDIM(steps=steps, clip=None)
        x_T = list(sampler.encode(denoiser, x))[-1][1]
        errors.append((sampler(denoiser, x_T) - x).abs().max().item())
    assert (
        errors[0] / errors[1] == pytest.approx(2, abs=0.3) == errors[1] / errors[2]
        and errors[2] < 0.03
    )
    assert x_T.std() == pytest.approx(2 * x.std().item(), rel=0.05), (
        "N(0, 0.5^2) is carried to N(0, 1)"
    )


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(eta=0.5), Heun()])
def test_a_sampler_with_noise_has_no_way_back(sampler):
    with pytest.raises(ValueError, match="cannot be run backwards"):
        list(sampler.encode(GaussianDenoiser(LINEAR, BetaTilde()), torch.zeros(1, 1)))


def test_a_dynamic_threshold_scales_the_quantile_to_the_bound():
    numbers = torch.full((10,), 3.0, dtype=torch.float64), 0.25 * torch.eye(10, dtype=torch.float64)
    denoiser, x = (
        analytic_denoisers.GaussianDenoiser(LINEAR, BetaTilde(), *numbers),
        torch.randn(2, 10),
    )
    t = torch.tensor([400, 400])
    loose = DDIM(clip=None).estimate(denoiser, x, t, Condition()).x0
    bound = loose.abs().sort(1).values[:, 8:9].clamp(min=1)
    found = DDIM(clip=1.0, dynamic_threshold=0.9).estimate(denoiser, x, t, Condition()).x0
    torch.testing.assert_close(found, loose.clamp(-bound, bound) / bound)
    wide = loose.abs().max().item() + 1
    assert torch.equal(
        DDIM(clip=wide, dynamic_threshold=0.9).estimate(denoiser, x, t, Condition()).x0, loose
    )


def test_slerp_keeps_the_length_between_its_ends():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    made = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(made.flatten(1).norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(made[0], a)
    torch.testing.assert_close(made[-1], b)
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3]))[0], a)


@pytest.mark.parametrize("last", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_visits_as_many_times_as_it_is_asked(spacing, last):
    for steps in range(1, last + 1):
        times = timesteps(last, steps, spacing)
        assert len(times) == steps + 1 and times[-1] == 0 and 1 <= times[-2] <= times[0] <= last
        assert all(t > s for t, s in itertools.pairwise(times))


def test_spacings_are_those_of_the_papers():
    assert timesteps(1000, 4, "leading") == [751, 501, 251, 1, 0]
    assert timesteps(1000, 4, "trailing") == [1000, 750, 500, 250, 0]
    assert (
        timesteps(1000, 10, "quadratic")[:-1]
        == [int(r**2) + 1 for r in np.linspace(0, 800**0.5, 10)][::-1]
    )
    assert timesteps(100, None, "3,2") == [100, 51, 50, 25, 1, 0]
    assert (
        timesteps(1000, 250, "90,60,60,20,20")[0] == 1000
        and len(timesteps(1000, 250, "90,60,60,20,20")) == 251
    )


def space_timesteps(last, text):
    """Restatement of improved-diffusion's function of this name, which counts times from 0."""
    if text.startswith("ddim"):
        for stride in range(1, last):
            if len(range(0, last, stride)) == int(text[4:]):
                return {*range(0, last, stride)}
        raise ValueError
    counts = [int(count) for count in text.split(",")]
    chosen, start = set(), 0
    for i, count in enumerate(counts):
        size = last // len(counts) + (i < last % len(counts))
        if count > size:
            raise ValueError
        stride, offset = 1 if count <= 1 else (size - 1) / (count - 1), 0.0
        for _ in range(count):
            chosen.add(start + round(offset))
            offset += stride
        start += size
    return chosen


@pytest.mark.parametrize("last", [1, 2, 7, 50, 99, 100, 101, 300, 1000, 4000])
def test_sections_are_those_of_improved_diffusion(last):
    generator = random.Random(last)
    texts = [
        f"{count}"
        for count in {1, 2, last // 2, last, *(generator.randint(1, last) for _ in range(60))}
        if 1 <= count <= last
    ]
    for parts in (2, 3, 5):
        texts += [
            ",".join(f"{generator.randint(1, last // parts)}" for _ in range(parts))
            for _ in range(40 if last >= parts else 0)
        ]
    for text in [*texts, *(["10,15,20"] if last == 300 else [])]:
        assert timesteps(last, None, text) == [
            *sorted((t + 1 for t in space_timesteps(last, text)), reverse=True),
            0,
        ], text


@pytest.mark.parametrize("last", [2, 7, 100, 1000])
def test_ddim_n_is_that_of_improved_diffusion(last):
    for count in range(1, last + 1):
        try:
            wanted = sorted((t + 1 for t in space_timesteps(last, f"ddim{count}")), reverse=True)
        except ValueError:
            with pytest.raises(ValueError, match=rf"spacing=ddim{count} needs an integer stride"):
                timesteps(last, None, f"ddim{count}")
        else:
            assert timesteps(last, None, f"ddim{count}") == [*wanted, 0]


@pytest.mark.parametrize("last", [15, 100, 128, 1000, 4000])
def test_spacings_are_those_of_the_code_that_they_name(last):
    for steps in range(1, last + 1, max(1, last // 150)):
        assert timesteps(last, steps, "leading")[-2::-1] == [
            1 + t for t in np.arange(steps) * (last // steps)
        ]
        trailing = np.round(np.arange(last, 0, -last / steps))
        if (
            len(trailing) == steps
        ):  # rounding errors make diffusers take a step more for some numbers
            assert timesteps(last, steps, "trailing")[:-1] == [*trailing]
        squares = [int(r**2) + 1 for r in np.linspace(0, (0.8 * last) ** 0.5, steps)][::-1]
        if steps > 1 and len({*squares}) == steps:  # DDIM's code visits repeated times repeatedly
            assert timesteps(last, steps, "quadratic")[:-1] == squares


@pytest.mark.parametrize(
    ("steps", "spacing", "told"),
    [
        (251, "90,60,60,20,20", "makes 250 steps"),
        (None, "300,10,10,10,10", "300 times in a section"),
        (None, "x", "spacing=x"),
        (None, [10, 20, 0], "must descend"),
        (None, [10, 5], "must descend"),
        (None, [1001, 0], "must descend"),
    ],
)
def test_spacings_that_cannot_be_are_refused(steps, spacing, told):
    with pytest.raises(ValueError, match=told):
        timesteps(1000, steps, spacing)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_ddim_is_song_et_als_recursion(eta, steps):
    process = ForwardProcess(cosine())
    sampler = DDIM(steps=steps, eta=eta, clip=None)
    times, ab, variance = sampler.timesteps(1000), process.table[:, 0].numpy() ** 2, 1.0
    for t, s in itertools.pairwise(times):
        gain = 0.25 * np.sqrt(ab[t]) / (0.25 * ab[t] + 1 - ab[t])
        sigma2 = eta**2 * (1 - ab[s]) / (1 - ab[t]) * (1 - ab[t] / ab[s])
        eps = (1 - np.sqrt(ab[t]) * gain) / np.sqrt(1 - ab[t])
        slope = np.sqrt(ab[s]) * gain + np.sqrt(max(1 - ab[s] - sigma2, 0)) * eps
        variance = slope**2 * variance + sigma2
    assert law(sampler, GaussianDenoiser(process, BetaTilde()))[1] == pytest.approx(
        variance**0.5, rel=1e-9
    )


def test_ddim_with_eta_1_is_ddpm_with_beta_tilde():
    denoiser, x = GaussianDenoiser(LINEAR, BetaTilde()), torch.randn(5, 1, dtype=torch.float64)
    made = [
        sampler(steps=40)(denoiser, x, noise=PerSampleGenerator(0, range(5)))
        for sampler in (DDPM, lambda **kwargs: DDIM(eta=1.0, **kwargs))
    ]
    torch.testing.assert_close(*made)


@pytest.mark.parametrize("sampler", [DDPM(steps=30, clip=None), DDIM(steps=30, eta=0.5, clip=None)])
def test_samples_have_the_law(sampler):
    denoiser = GaussianDenoiser(LINEAR, Beta(), mean=0.3)
    mean, std = law(sampler, denoiser)
    x = sampler(denoiser, torch.randn(100_000, 1))
    assert x.mean().item() == pytest.approx(mean, abs=4 * std / 100_000**0.5)
    assert x.std().item() == pytest.approx(std, rel=4 / 200_000**0.5)


@pytest.mark.parametrize("last", [1, 2, 10, 1000])
def test_any_number_of_steps_descends_to_the_data(last):
    for steps in range(1, last + 1):
        times = DDPM(steps=steps).timesteps(last)
        assert times[0] == last and times[-1] == 0 and len(times) == steps + 1
        assert all(t > s for t, s in itertools.pairwise(times))
    assert DDPM().timesteps(last) == list(range(last, -1, -1))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_other_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps must lie in 1\.\.1000"):
        DDPM(steps=steps).timesteps(1000)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_0_1_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        DDIM(eta=eta)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_bound_that_is_none_is_refused(clip):
    with pytest.raises(ValueError, match="clip"):
        DDPM(clip=clip)


def test_the_last_step_adds_no_noise():
    denoiser = GaussianDenoiser(LINEAR, Beta())
    x = torch.randn(3, 1)
    one = DDPM(steps=1, clip=None)
    torch.testing.assert_close(one(denoiser, x), denoiser(x, torch.full((3,), 1000)).x0)


def test_clipping_bounds_x0_and_what_follows_from_it():
    denoiser, x = GaussianDenoiser(LINEAR, BetaTilde(), mean=3.0), torch.randn(3, 1)
    assert DDIM(steps=10, clip=1.0)(denoiser, x).abs().max() <= 1.0
    assert DDIM(steps=10, clip=None)(denoiser, x).abs().max() > 2.0


TWO = [600, 300, 0]


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(spacing=TWO),
        DDIM(spacing=TWO),
        DDIM(spacing=TWO, eta=1.0),
        Heun(spacing=TWO),
        DPMSolver(spacing=TWO),
    ],
)
def test_what_follows_from_a_clipped_x0_is_as_if_it_had_been_guessed(sampler):
    far, x = (
        GaussianDenoiser(LINEAR, BetaTilde(), mean=30.0, std=0.1),
        torch.randn(3, 1, dtype=torch.float64),
    )
    at_bound = GaussianDenoiser(LINEAR, BetaTilde(), mean=1.0, std=0.0)
    walks = [
        list(sampler.trajectory(denoiser, x, noise=torch.ones_like)) for denoiser in (far, at_bound)
    ]
    for (_, clipped_modules), (_, wanted) in zip(*walks, strict=True):
        torch.testing.assert_close(clipped_modules, wanted)


def test_a_samples_noise_does_not_depend_on_its_company():
    like = torch.empty(4, 1, 3, 3)
    together, alone = PerSampleGenerator(5, range(4)), PerSampleGenerator(5, [2])
    for _ in range(3):
        assert torch.equal(together(like)[2:3], alone(like[:1]))
    assert not torch.equal(
        PerSampleGenerator(5, [0])(like[:1]), PerSampleGenerator(5, [1])(like[:1])
    )
    assert not torch.equal(
        PerSampleGenerator(5, [1])(like[:1]), PerSampleGenerator(6, [0])(like[:1])
    )


def test_sample_noise_is_standard_normal():
    drawn = PerSampleGenerator(0, range(2000))(torch.empty(2000, 100))
    assert abs(drawn.mean().item()) < 0.01 and drawn.std().item() == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(drawn[:50]).triu(1).abs().max() < 0.5, "neighbouring seeds are unrelated"


def test_encoding_remembers_the_guess_before():
    told = []

    class Recalling(analytic_denoisers.GaussianDenoiser):
        self_conditioning = True

        def forward(self, x_t, t, cond=Condition()):
            estimate = super().forward(x_t, t)
            told.append((cond.previous, estimate.x0))
            return estimate

    law = torch.tensor([0.0], dtype=torch.float64), torch.tensor([[0.25]], dtype=torch.float64)
    denoiser = Recalling(LINEAR, BetaTilde(), *law)
    list(DDIM(steps=4, clip=None).encode(denoiser, torch.randn(3, 1, dtype=torch.float64)))
    assert told[0][0] is None
    for (_, before), (previous, _) in itertools.pairwise(told):
        assert torch.equal(previous, before)
